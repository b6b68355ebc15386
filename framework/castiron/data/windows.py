"""Windows of a series: stretches of one length that overlap, kept as the series and where each begins."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from castiron.data.ragged import Int64


class Windows:
    """N windows of `length` rows each, of one series.

    `values` is [T, ...]; window i is `values[starts[i]:starts[i] + length]`. Side by side, windows of 336
    rows that begin at every row would take 336 times the memory of their series. Both arrays are taken
    as they are, and are not to be changed afterwards.

    Raises:
        TypeError: `starts` is not a one-dimensional array of int64.
        ValueError: a window begins before the series or ends after it, or `length` is below 1.
    """

    __slots__ = ("_steps", "length", "rows", "starts", "values")

    def __init__(self, values: np.ndarray, starts: Int64, length: int, *, rows: Int64 | None = None) -> None:
        """
        Args:
            rows: int64 [N]: number of the data set's row that each window begins in, where the series is not
                the data set's rows themselves (the characters of its lines). Default: `starts`.
        """
        if not isinstance(starts, np.ndarray) or starts.dtype != np.int64 or starts.ndim != 1:
            raise TypeError("Expected starts as a one-dimensional int64 array.")
        if length < 1:
            raise ValueError(f"Expected windows of at least 1 row. Received {length}.")
        if starts.size and not (starts.min() >= 0 and starts.max() + length <= len(values)):
            raise ValueError(
                f"Expected windows of {length:,} rows within a series of {len(values):,}. "
                f"Received starts from {starts.min():,} to {starts.max():,}."
            )
        self.values = values
        self.starts = starts
        self.rows = starts if rows is None else rows
        self.length = length
        self._steps = np.arange(length)

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, length, ...]: that of the windows side by side."""
        return (len(self), self.length, *self.values.shape[1:])

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the windows side by side, not of what is kept."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.starts.size

    def __repr__(self) -> str:
        return f"Windows({len(self):,} windows of {self.length:,} rows, {self.values.dtype})"

    def take(self, indices: npt.ArrayLike, axis: int = 0) -> np.ndarray:
        """The windows `indices`, copied [len(indices), length, ...]; `axis` is 0, as in `numpy.take`."""
        if axis:
            raise ValueError(f"Expected axis 0. Received {axis}.")
        begins = self.starts[np.asarray(indices, np.int64)]
        taken: np.ndarray = self.values[begins[:, None] + self._steps]
        return taken

    def in_format(self, dtype: np.dtype) -> Windows:
        """The windows of the series in another format."""
        return Windows(self.values.astype(dtype), self.starts, self.length, rows=self.rows)


def last_known(values: np.ndarray) -> np.ndarray:
    """A series [T, C] in which each NaN is the last number before it in its column, or else the first."""
    known = ~np.isnan(values)
    place = np.where(known, np.arange(len(values))[:, None], -1)
    np.maximum.accumulate(place, axis=0, out=place)
    place = np.where(place < 0, known.argmax(0), place)
    return np.take_along_axis(values, place, axis=0)
