"""Batches of the data contract as torch tensors, in the form that Lightning's loops take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from castiron.data import Batches


class TorchLoader:
    """Iterates over `Batches` as mappings of tensors that share the arrays' memory (nothing is copied).

    Each pass is the next epoch. Lightning saves `state_dict()` with a checkpoint and loads it on resuming,
    so that the first pass goes on within the epoch at the batch after the last one trained on.
    """

    def __init__(self, batches: Batches, limit: int | None = None) -> None:
        self.batches = batches
        self._limit = limit

    def __len__(self) -> int:
        return len(self.batches) if self._limit is None else min(self._limit, len(self.batches))

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        # A generator: nothing happens until the first batch is asked for, as Lightning makes iterators
        # that it never uses.
        state = self.batches.state_dict()
        epoch, first = state["epoch"], state["batch"]
        self.batches.set_epoch(epoch)
        last = len(self) - 1
        for number, batch in enumerate(self.batches, start=first):
            if number >= last:
                # Said before the last batch is handed out: Lightning counts, and never asks for the end.
                self.batches.set_epoch(epoch + 1)
            yield {name: torch.from_numpy(array) for name, array in batch.items()}
            if number >= last:
                return

    def state_dict(self) -> dict[str, Any]:
        return dict(self.batches.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches.load_state_dict(state)
