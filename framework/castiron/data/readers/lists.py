"""Lists in cells as arrays of one shape; the rows whose lists have another are named."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from castiron.data.readers.source import BadValue


def flatten(values: pa.Array, shape: Sequence[int]) -> tuple[pa.Array, np.ndarray, list[BadValue]]:
    """Take nested lists apart.

    Args:
        values: list arrays nested `len(shape)` deep [rows].
        shape: of one row's value.

    Returns:
        the elements, flat [rows * size], null for those of rows that are null or misshapen;
        the mask of rows that are null [rows];
        the rows of another shape.
    """
    rows, whole = len(values), values
    missing = values.is_null().to_numpy(zero_copy_only=False)
    bad = np.zeros(rows, dtype=bool)
    per_row = 1
    for size in shape:
        lengths = pc.fill_null(pc.list_value_length(values), -1).to_numpy(zero_copy_only=False)
        wrong = lengths != size
        bad |= wrong.reshape(rows, per_row).any(axis=1)
        values = _regular(values, lengths, size)
        per_row *= size
    bad &= ~missing
    expected = f"shape {list(shape)}"
    described = [
        BadValue(int(row), "D116", shape_of(whole[int(row)].as_py()), expected) for row in np.flatnonzero(bad)
    ]
    return values, missing, described


def _regular(values: pa.Array, lengths: np.ndarray, size: int) -> pa.Array:
    """The elements of lists, `size` of them each; null for lists of another length."""
    if (lengths == size).all():
        return values.flatten()
    if pa.types.is_fixed_size_list(values.type):
        values = values.cast(pa.list_(values.type.value_type))
    starts = values.offsets.to_numpy()[:-1].astype(np.int64)
    wanted = starts[:, None] + np.arange(size)
    right = np.broadcast_to((lengths == size)[:, None], wanted.shape)
    return values.values.take(pa.array(wanted.ravel(), mask=~right.ravel()))


def shape_of(value: object) -> str:
    """What a nested Python list looks like, for messages: `[3]`, `[2, 3]`, `a list with lists of 2 and 3`."""
    if not isinstance(value, list | tuple):
        return "no list"
    sizes: list[int] = []
    level: list[object] = [value]
    while level and all(isinstance(v, list | tuple) for v in level):
        lengths = sorted({len(v) for v in level})  # type: ignore[arg-type]
        if len(lengths) > 1:
            inner = " and ".join(map(str, lengths[:3]))
            return f"{len(value)} lists of {inner}"
        sizes.append(lengths[0])
        level = [item for v in level for item in v]  # type: ignore[attr-defined]
    return f"shape {sizes}"
