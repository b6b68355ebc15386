"""Where a row came from: file and line, resolved only when asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class Origin:
    """The file and line of a row. Both count from 1, and files without lines (Parquet, npz) count rows."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(slots=True)
class LineIndex:
    """First line of each row of one file, block by block.

    A block whose rows take one line each is stored as two numbers; only a block with blank lines or with
    line breaks inside cells stores a line number per row (int64).
    """

    file: str
    rows: int = 0
    _first_rows: list[int] = field(default_factory=list)
    _lines: list[int | np.ndarray] = field(default_factory=list)

    def add(self, rows: int, lines: int | np.ndarray) -> None:
        """Append a block: its number of rows, and its first line, or the line of each row [rows]."""
        if rows:
            self._first_rows.append(self.rows)
            self._lines.append(lines)
            self.rows += rows

    def line(self, row: int) -> int:
        """Line of a row; both the row (from 0) and the line (from 1) are counted within the file."""
        if not 0 <= row < self.rows:
            raise IndexError(f"Expected a row from 0 to {self.rows - 1} of {self.file}. Received {row}.")
        block = bisect_right(self._first_rows, row) - 1
        lines, offset = self._lines[block], row - self._first_rows[block]
        return lines + offset if isinstance(lines, int) else int(lines[offset])


class Origins:
    """The origin of every row of a data set: rows of several files, in order, less those left out.

    Args:
        files: a line index per file, in the order in which they were read.
        kept: numbers of the rows that are left, among all rows read [n] int64; None: all of them.
    """

    def __init__(self, files: Sequence[LineIndex], kept: np.ndarray | None = None) -> None:
        self._files = tuple(files)
        self._starts = np.cumsum([0, *(f.rows for f in self._files)])
        self._kept = kept

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._kept is None else len(self._kept)

    def __getitem__(self, index: int) -> Origin:
        n = len(self)
        if not -n <= index < n:
            raise IndexError(f"Expected a row from 0 to {n - 1}. Received {index}.")
        index %= n
        row = index if self._kept is None else int(self._kept[index])
        number = bisect_right(self._starts, row) - 1
        file = self._files[number]
        return Origin(file.file, file.line(row - int(self._starts[number])))

    def take(self, indices: np.ndarray) -> Origins:
        """The origins of these rows, in this order."""
        wanted = np.asarray(indices, dtype=np.int64)
        return Origins(self._files, wanted if self._kept is None else self._kept[wanted])
