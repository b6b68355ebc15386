"""The rows of a batch of tensors: how many, and some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from castiron.torch.replay.values import tensors_in
from castiron.torch.trees import map_tensors


def batch_rows(batch: Any) -> int | None:
    """How many rows a batch has; None where that cannot be told."""
    if _has_packed(batch):
        return None
    if isinstance(batch, Mapping) and isinstance(batch.get("row"), Tensor):
        return len(batch["row"])
    sizes = [t.shape[0] for t in tensors_in(batch) if t.dim()]
    return max(set(sizes), key=lambda s: (sizes.count(s), -sizes.index(s))) if sizes else None


def select(batch: Any, rows: Sequence[int], of: int) -> Any:
    """These rows of a batch of so many; tensors without a first dimension of that size stay whole."""

    def take(tensor: Tensor) -> Tensor:
        if not tensor.dim() or tensor.shape[0] != of:
            return tensor
        return tensor.index_select(0, torch.tensor(list(rows), device=tensor.device))

    return map_tensors(take, batch)


def _has_packed(tree: Any) -> bool:
    if isinstance(tree, PackedSequence):
        return True
    if isinstance(tree, Mapping):
        return any(_has_packed(v) for v in tree.values())
    return isinstance(tree, (tuple, list)) and any(_has_packed(v) for v in tree)
