"""A column as it grows, and the statistics that fill its gaps."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from castiron.data.missing import FittedValue

_FIRST = 1 << 16
"""Rows that there is room for at first."""


class ArrayStore:
    """Rows of one format, appended piece by piece [rows, *shape].

    They lie in pyarrow's memory: what blocks that were read have left there is used again, where NumPy would
    ask for new pages. The room is doubled when it runs out; pages that nothing was written to take no memory,
    so the peak is the column itself and, for a moment, one copy of it.
    """

    def __init__(self, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        self._dtype, self._shape = dtype, shape
        self._row_bytes = dtype.itemsize * math.prod(shape)
        self._begin()

    def _begin(self) -> None:
        self.rows = 0
        self._buffer: Any = pa.allocate_buffer(0, resizable=True)
        self._room = self._array(0)

    def _array(self, rows: int) -> np.ndarray:
        return np.ndarray((rows, *self._shape), self._dtype, self._buffer)

    def reserve(self, rows: int) -> None:
        """Make room for so many more rows."""
        needed = self.rows + rows
        if needed > len(self._room):
            self._resize(needed)

    def _resize(self, rows: int) -> None:
        self._room = self._array(0)  # the memory may move
        self._buffer.resize(rows * self._row_bytes, shrink_to_fit=True)
        self._room = self._array(rows)

    def room(self, rows: int) -> np.ndarray:
        """The place of the rows that come next [rows, *shape], until more room is made; they are there once
        `rows` counts them."""
        needed = self.rows + rows
        if needed > len(self._room):
            self.reserve(max(rows, 2 * len(self._room) - self.rows, _FIRST))
        return self._room[self.rows : needed]

    def append(self, values: np.ndarray) -> None:
        self.room(len(values))[...] = values
        self.rows += len(values)

    def finish(self) -> np.ndarray:
        """All rows; the store is empty afterwards."""
        if self.rows < len(self._room):
            self._resize(self.rows)  # hands the rest of the room back
        values = self._room
        self._begin()
        return values


class TextStore:
    """Rows of text, appended piece by piece."""

    def __init__(self) -> None:
        self._chunks: list[pa.Array] = []
        self.rows = 0

    def append(self, values: pa.Array) -> None:
        self._chunks.append(values.cast(pa.large_string()))
        self.rows += len(values)

    def finish(self) -> pa.ChunkedArray:
        """All rows; the store is empty afterwards."""
        chunks, self._chunks, self.rows = self._chunks, [], 0
        return pa.chunked_array(chunks, type=pa.large_string())


def fit(values: np.ndarray, gaps: np.ndarray, statistic: Literal["mean", "median"]) -> FittedValue | None:
    """The statistic of all values but those at the flat positions `gaps`, in float64; None of none."""
    present = np.ones(values.size, dtype=bool)
    present[gaps] = False
    known = values.reshape(-1)[present].astype(np.float64)
    if not known.size:
        return None
    value = float(known.mean() if statistic == "mean" else np.median(known))
    return FittedValue(statistic=statistic, value=value, rows=int(known.size))
