"""The rows of a batch of tensors: how many, and some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from castiron.keras.replay.values import named_tensors


def batch_rows(batch: Any) -> int | None:
    """How many rows a batch has; None where that cannot be told."""
    if isinstance(batch, Mapping) and tf.is_tensor(batch.get("row")):
        return int(batch["row"].shape[0])
    sizes = [int(t.shape[0]) for _, t in named_tensors(batch) if t.shape.rank]
    return max(set(sizes), key=lambda s: (sizes.count(s), -sizes.index(s))) if sizes else None


def select(batch: Any, rows: Sequence[int], of: int) -> Any:
    """These rows of a batch of so many; tensors without a first dimension of that size stay whole."""

    def take(tensor: Any) -> Any:
        if not tf.is_tensor(tensor) or not tensor.shape.rank or tensor.shape[0] != of:
            return tensor
        return tf.gather(tensor, list(rows))

    return tf.nest.map_structure(take, batch)
