"""Tensors as replay sees them: sound, masked on purpose, or bad; and what they held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow as tf

from castiron.keras.dtypes import dtype_name
from castiron.training.incident import TensorStatistics


class State(IntEnum):
    """How good a tensor's values are."""

    GOOD = 0
    """All finite."""
    MASKED = 1
    """Infinite where somebody put an infinity on purpose: a mask of -inf. No NaN."""
    BAD = 2
    """NaN, or an infinity that nobody asked for."""


def numbers(tensor: Any) -> np.ndarray | None:
    """The floating-point numbers of an eager tensor, as float32 or float64; None where it has none."""
    if isinstance(tensor, tf.IndexedSlices):
        tensor = tensor.values
    if tensor is None or not hasattr(tensor, "numpy") or not tensor.dtype.is_floating:
        return None
    values = np.asarray(tensor.numpy())
    return values if values.dtype == np.float64 else values.astype(np.float32)


def is_finite(tensor: Any) -> bool:
    """Whether all numbers of a tensor are finite."""
    values = numbers(tensor)
    return values is None or bool(np.isfinite(values).all())


def state_of(tensor: Any, *, masks: bool) -> State:
    """State of a tensor by its values alone.

    Args:
        masks: whether infinities without NaN count as put there on purpose.
    """
    values = numbers(tensor)
    if values is None or np.isfinite(values).all():
        return State.GOOD
    return State.MASKED if masks and not np.isnan(values).any() else State.BAD


def state_of_data(tensor: Any) -> State:
    """State of a tensor of the batch: infinities are a mask only beside zeros, as in one that is added."""
    state = state_of(tensor, masks=True)
    values = numbers(tensor)
    if state is not State.MASKED or values is None:
        return state
    return State.MASKED if bool(((values == 0) | np.isneginf(values)).all()) else State.BAD


def statistics(name: str, tensor: Any) -> TensorStatistics:
    """What a tensor held: range of its finite values, counts of the rest."""
    record: dict[str, Any] = {
        "name": name,
        "dtype": dtype_name(tensor.dtype),
        "shape": tuple(int(n) for n in tensor.shape),
    }
    values = numbers(tensor)
    if values is None:
        if hasattr(tensor, "numpy") and tensor.dtype.is_integer and np.size(tensor.numpy()):
            whole = np.asarray(tensor.numpy(), np.int64)
            record |= {"min": int(whole.min()), "max": int(whole.max()), "zero": int((whole == 0).sum())}
        return TensorStatistics(**record)
    finite = values[np.isfinite(values)]
    if finite.size:
        record |= {"min": float(finite.min()), "max": float(finite.max())}
    tiny = float(ml_dtypes.finfo(tensor.dtype.as_numpy_dtype).smallest_normal)
    record["nan"] = int(np.isnan(values).sum())
    record["posinf"] = int(np.isposinf(values).sum())
    record["neginf"] = int(np.isneginf(values).sum())
    record["zero"] = int((values == 0).sum())
    record["subnormal"] = int(((values != 0) & (np.abs(values) < tiny)).sum())
    return TensorStatistics(**record)


def bad_along(tensor: Any, dim: int, *, infinities: bool = False) -> list[int]:
    """Positions along a dimension where something is NaN, or infinite where nothing is NaN.

    Args:
        infinities: infinite ones in any case. Beside NaN they may be masks.
    """
    values = numbers(tensor)
    if values is None or values.ndim <= dim:
        return []
    odd = ~np.isfinite(values) if infinities else np.isnan(values)
    if not odd.any():
        odd = np.isinf(values)
    hit = odd.any(axis=tuple(d for d in range(values.ndim) if d != dim))
    return [int(i) for i in np.flatnonzero(hit)]


def named_tensors(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The tensors of a tree with the path that leads to them: `x`, `inputs.ids`, `0`."""
    if tf.is_tensor(tree):
        yield name, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from named_tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, (tuple, list)):
        for key, value in zip(getattr(tree, "_fields", None) or range(len(tree)), tree, strict=True):
            yield from named_tensors(value, f"{name}.{key}" if name else str(key))
