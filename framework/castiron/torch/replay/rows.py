"""The rows of a batch without which a step is good."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from castiron.torch.replay.values import tensors_in
from castiron.torch.trees import map_tensors

_MOST = 16
"""Rows that are named; where more are bad, it is no matter of rows."""
_RUNS = 48

Trial = Callable[[Sequence[int]], bool | None]


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


def bad_rows(is_bad: Trial, of: int, suspects: Sequence[int] | None) -> list[int]:
    """Rows that make a step bad each on its own; empty where it is no matter of single rows.

    Args:
        is_bad: whether a batch of these rows alone is bad; None where it cannot be run.
        of: rows of the batch, which is bad as a whole.
        suspects: rows that look so. They are tested before others are searched.
    """
    if of == 1:
        return [0]
    if suspects and len(suspects) <= _MOST:
        others = [r for r in range(of) if r not in set(suspects)]
        alone = is_bad(suspects)
        if alone is None or (alone and not (others and is_bad(others))):
            return list(suspects)
    found = _search(is_bad, list(range(of)), [_RUNS])
    return found if found is not None and len(found) <= _MOST else []


def _search(is_bad: Trial, rows: list[int], runs: list[int]) -> list[int] | None:
    """Bad rows among rows that are bad together; None where it gives up."""
    if len(rows) == 1:
        return rows
    middle = len(rows) // 2
    found: list[int] = []
    for half in (rows[:middle], rows[middle:]):
        runs[0] -= 1
        if runs[0] < 0:
            return None
        if is_bad(half):
            inner = _search(is_bad, half, runs)
            if inner is None or len(found) + len(inner) > _MOST:
                return None
            found += inner
    return found


def _has_packed(tree: Any) -> bool:
    if isinstance(tree, PackedSequence):
        return True
    if isinstance(tree, Mapping):
        return any(_has_packed(v) for v in tree.values())
    return isinstance(tree, (tuple, list)) and any(_has_packed(v) for v in tree)
