"""Sequences of unequal length, kept as one flat array and the places where each begins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


class Ragged:
    """N sequences of int64, end to end.

    `values` is int64 [total]; `offsets` is int64 [N + 1], begins with 0, never falls, and ends with `total`:
    row i is `values[offsets[i]:offsets[i + 1]]`. Rows may be empty. Nothing here loops over rows in Python.
    Both arrays are taken without a copy and are not to be changed afterwards.

    Raises:
        TypeError: `values` or `offsets` is not a one-dimensional array of int64.
        ValueError: `offsets` does not describe `values`.
    """

    __slots__ = ("__dict__", "offsets", "values")

    def __init__(self, values: Int64, offsets: Int64) -> None:
        for name, array in (("values", values), ("offsets", offsets)):
            if not isinstance(array, np.ndarray) or array.dtype != np.int64 or array.ndim != 1:
                raise TypeError(
                    f"Expected {name} as a one-dimensional int64 array. Received {_described(array)}."
                )
        if not offsets.size or offsets[0] != 0 or offsets[-1] != values.size or (np.diff(offsets) < 0).any():
            raise ValueError(
                f"Expected offsets that begin with 0, never fall, and end with the number of values "
                f"({values.size}). Received {_brief(offsets)}."
            )
        self.values = values
        self.offsets = offsets

    @classmethod
    def from_lengths(cls, values: Int64, lengths: Int64) -> Ragged:
        """From int64 `values` [total] and the length [N] of each row."""
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(values, offsets)

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[int]]) -> Ragged:
        """From Python sequences; for small data and tests (this one does loop)."""
        arrays = [np.asarray(row, np.int64).reshape(-1) for row in rows]
        lengths = np.fromiter((a.size for a in arrays), np.int64, len(arrays))
        return cls.from_lengths(np.concatenate([np.empty(0, np.int64), *arrays]), lengths)

    @classmethod
    def concatenate(cls, parts: Sequence[Ragged]) -> Ragged:
        """The rows of all `parts`, in order."""
        none = np.empty(0, np.int64)
        return cls.from_lengths(
            np.concatenate([none, *(part.values for part in parts)]),
            np.concatenate([none, *(part.lengths for part in parts)]),
        )

    def __len__(self) -> int:
        return self.offsets.size - 1

    @cached_property
    def lengths(self) -> Int64:
        """int64 [N]: how long each row is."""
        return np.diff(self.offsets)

    @cached_property
    def _starts(self) -> Int64:
        return self.offsets[:-1]

    def __getitem__(self, index: int) -> Int64:
        """Row `index` as int64 [length], without a copy. Negative indices count from the end."""
        row = range(len(self))[index]
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[Int64]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ragged):
            return NotImplemented
        return np.array_equal(self.offsets, other.offsets) and np.array_equal(self.values, other.values)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        longest = int(self.lengths.max()) if len(self) else 0
        return f"Ragged({len(self):,} rows, {self.values.size:,} values, longest {longest:,})"

    def take(self, indices: npt.ArrayLike) -> Ragged:
        """The rows `indices` (integers [M], negative ones count from the end; or bool [N]), copied.

        Raises:
            IndexError: an index is out of range.
        """
        rows = self._rows(indices)
        lengths = self.lengths[rows]
        offsets = np.zeros(rows.size + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        # Where each taken value lies: its place in the result, moved from its row's new start to its old one.
        source = np.arange(offsets[-1]) + np.repeat(self._starts[rows] - offsets[:-1], lengths)
        return Ragged(self.values[source], offsets)

    def pad(
        self, indices: npt.ArrayLike | None = None, length: int | None = None, value: int = 0
    ) -> tuple[Int64, Int64]:
        """The rows `indices` (all, where None) side by side, filled up with `value` on the right.

        Returns int64 [B, T] and the lengths int64 [B]. T is `length`, or the longest of these rows; rows
        longer than `length` are cut, and their length with them.
        """
        rows = np.arange(len(self)) if indices is None else self._rows(indices)
        lengths = self.lengths[rows]
        width = int(lengths.max(initial=0))
        if length is not None:
            lengths = np.minimum(lengths, length)
            width = length
        if not self.values.size or not width:
            return np.full((rows.size, width), value, np.int64), lengths
        steps = np.arange(width)
        # Reading past a row's end, clipped to the array's, then overwriting: cheaper than a scatter by mask.
        padded = self.values.take(self._starts[rows][:, None] + steps, mode="clip")
        beyond = steps >= lengths[:, None]
        if value:
            padded[beyond] = value
        else:
            padded *= ~beyond
        return padded, lengths

    def truncate(self, length: int, *, tail: int = 0) -> Ragged:
        """Rows longer than `length` cut to it: their first `length - tail` values and their last `tail`."""
        if not 0 <= tail <= length:
            raise ValueError(f"Expected 0 <= tail <= length. Received tail={tail}, length={length}.")
        lengths = self.lengths
        if not len(self) or lengths.max() <= length:
            return self
        place = np.arange(self.values.size) - np.repeat(self.offsets[:-1], lengths)
        of = np.repeat(lengths, lengths)
        keep = (of <= length) | (place < length - tail) | (place >= of - tail)
        return Ragged.from_lengths(self.values[keep], np.minimum(lengths, length))

    def _rows(self, indices: npt.ArrayLike) -> npt.NDArray[np.integer]:
        rows = np.asarray(indices)
        if rows.dtype.kind in "iu" and rows.ndim == 1:
            return rows
        if rows.dtype == np.bool_ and rows.shape == (len(self),):
            return np.flatnonzero(rows)
        if not rows.size:
            return np.empty(0, np.int64)
        raise IndexError(f"Expected integers [M], or bool [{len(self)}]. Received {_described(rows)}.")


def _described(array: Any) -> str:
    if isinstance(array, np.ndarray):
        return f"{array.dtype} of shape {array.shape}"
    return f"{type(array).__name__}"


def _brief(array: Int64) -> str:
    return np.array2string(array, threshold=6, edgeitems=3)
