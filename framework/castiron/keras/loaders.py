"""Batches of the data contract as tensors, cast by role."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from castiron.data import Batches, Schema
from castiron.keras.inputs import cast_inputs
from castiron.policy import PrecisionPolicy


class TensorLoader:
    """Iterates over `Batches` as mappings of tensors. Each pass is the next epoch, or goes on where
    `load_state_dict` said."""

    def __init__(
        self, batches: Batches, policy: PrecisionPolicy, schema: Schema, limit: int | None = None
    ) -> None:
        self.batches = batches
        self._policy, self._schema, self._limit = policy, schema, limit

    def __len__(self) -> int:
        return len(self.batches) if self._limit is None else min(self._limit, len(self.batches))

    @property
    def done(self) -> int:
        """Batches of the present epoch that were handed out already."""
        return int(self.batches.state_dict()["batch"])

    @property
    def epoch(self) -> int:
        """From 0."""
        return int(self.batches.state_dict()["epoch"])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        state = self.batches.state_dict()
        epoch, first = state["epoch"], state["batch"]
        self.batches.set_epoch(epoch)
        last = len(self) - 1
        for number, batch in enumerate(self.batches, start=first):
            if number >= last:
                self.batches.set_epoch(epoch + 1)
            cast = cast_inputs(dict(batch), self._policy, self._schema)
            yield {name: tf.convert_to_tensor(array) for name, array in cast.items()}
            if number >= last:
                return

    def state_dict(self) -> dict[str, Any]:
        return dict(self.batches.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches.load_state_dict(state)


def signature(batch: dict[str, Any]) -> dict[str, Any]:
    """What a compiled function takes: formats and ranks of this batch, any sizes."""
    return {name: tf.TensorSpec([None] * value.shape.rank, value.dtype) for name, value in batch.items()}
