"""Where the rows of delimited text begin and end, line breaks inside quoted cells included.

pyarrow parses the cells; this says which line of the file each row is on. Everything is vectorised but the
state machine for stray quotes, which quote-by-quote counting cannot follow.
"""

from __future__ import annotations

import re
from functools import cached_property

import numpy as np

_NEWLINE, _RETURN, _QUOTE = 10, 13, 34
_PIECE = 1 << 17


class RowScan:
    """The rows of a block of bytes that begins at the start of a row.

    Args:
        data: the block.
        delimiter: the byte between cells.
        quoting: whether double quotes enclose cells (and a doubled one is a character).
        last: whether the file ends with this block; else a row that is cut off does not count.

    Attributes:
        end: the complete rows are `data[:end]`.
        unclosed: offset of a quote that opens a cell and is never closed, in the last block; else None.
    """

    def __init__(self, data: bytes, delimiter: int = 44, *, quoting: bool, last: bool) -> None:
        self._bytes = np.frombuffer(data, dtype=np.uint8)
        self._data = data
        self._delimiter = delimiter
        self._last = last
        self._quoted = quoting and b'"' in data
        self._returns = b"\r" in data
        self.unclosed: int | None = None
        self.end = self._find_end()

    def _find_end(self) -> int:
        size = len(self._data)
        if self._quoted or (self._returns and b"\n" not in self._data):
            ends = self._ends_everywhere
            complete = int(ends[-1]) if len(ends) else 0
        else:
            complete = self._data.rfind(b"\n") + 1
        return size if self._last else complete

    @cached_property
    def _breaks(self) -> np.ndarray:
        """Offsets just past each line break (\\n, \\r\\n or a lone \\r), those inside cells included."""
        past = np.flatnonzero(self._bytes == _NEWLINE) + 1
        if not self._returns:
            return past
        returns = np.flatnonzero(self._bytes == _RETURN) + 1
        inner = returns[returns < len(self._bytes)]
        lone = inner[self._bytes[inner] != _NEWLINE]
        if self._last and len(returns) and returns[-1] == len(self._bytes):
            lone = np.append(lone, returns[-1])
        if len(lone):
            past = np.sort(np.concatenate([past, lone]))
        return past

    @cached_property
    def _quotes(self) -> np.ndarray | None:
        """Offsets of quotes where their parity tells inside from outside; None where stray ones break it."""
        data, quotes = self._bytes, np.flatnonzero(self._bytes == _QUOTE)
        outside = np.array([self._delimiter, _NEWLINE, _RETURN, _QUOTE], dtype=np.uint8)
        opening, closing = quotes[0::2], quotes[1::2]
        before = opening[opening > 0] - 1
        after = closing[closing < len(data) - 1] + 1
        if not (np.isin(data[before], outside).all() and np.isin(data[after], outside).all()):
            return None
        # A quote before an opening one must be the closing one of a doubled pair, not a character.
        doubled = before[data[before] == _QUOTE]
        if len(doubled) and not np.isin(doubled, closing).all():
            return None
        return quotes

    @cached_property
    def _ends_everywhere(self) -> np.ndarray:
        """Offsets just past each line break that ends a row."""
        if not self._quoted:
            return self._breaks
        if self._quotes is None:
            return self._walked[0]
        if self._last and len(self._quotes) % 2:
            self.unclosed = int(self._quotes[-1])
        inside = np.searchsorted(self._quotes, self._breaks) % 2 == 1
        ends: np.ndarray = self._breaks[~inside]
        return ends

    @cached_property
    def _walked(self) -> tuple[np.ndarray, np.ndarray]:
        """(row ends, cells per row) by walking cell by cell, as pyarrow does: a quote opens a cell only at
        its very start, and what follows a closing quote belongs to the cell."""
        delimiter = re.escape(bytes([self._delimiter]))
        cell = re.compile(rb'("(?:[^"]|"")*("|\Z))?[^%s\r\n]*(\r\n|\n|\r|%s|\Z)' % (delimiter, delimiter))
        ends, widths, width, position, size = [], [], 0, 0, len(self._data)
        stop = b""
        while position < size:
            match = cell.match(self._data, position)
            assert match is not None, "every alternative may be empty"
            if match.group(1) and match.group(2) == b"":
                self.unclosed = position if self._last else None
                break
            width += 1
            stop = match.group(3)
            position = match.end()
            if stop == b"\r" and position == size and not self._last:
                break
            if stop in (b"\n", b"\r\n", b"\r"):
                ends.append(position)
                widths.append(width)
                width = 0
        if self._last and width:
            # A delimiter at the very end is followed by an empty cell.
            widths.append(width + (self._bytes[-1] == self._delimiter and stop not in (b"", b"\r")))
        return np.array(ends, dtype=np.int64), np.array(widths, dtype=np.int64)

    @cached_property
    def _rows(self) -> tuple[np.ndarray, np.ndarray]:
        """(starts, ends) of every line that could be a row, blank ones included."""
        ends = self._ends_everywhere
        ends = ends[ends <= self.end]
        if self.end > (ends[-1] if len(ends) else 0):
            ends = np.append(ends, self.end)
        return np.concatenate([[0], ends]).astype(np.int64)[:-1], ends

    @cached_property
    def _filled(self) -> np.ndarray:
        """Which of `_rows` are no blank lines."""
        first = self._bytes[self._rows[0]]
        filled: np.ndarray = (first != _NEWLINE) & (first != _RETURN)
        return filled

    @cached_property
    def n_lines(self) -> int:
        """Lines in the complete rows; a last line needs no line break."""
        if not self._returns:
            # In pieces that stay in the processor's cache.
            pieces = range(0, self.end, _PIECE)
            piece_ends = (min(i + _PIECE, self.end) for i in pieces)
            n = sum(
                int(np.count_nonzero(self._bytes[i:stop] == _NEWLINE))
                for i, stop in zip(pieces, piece_ends, strict=True)
            )
        else:
            n = int(np.searchsorted(self._breaks, self.end, side="right"))
        if self._last and self.end and self._bytes[self.end - 1] not in (_NEWLINE, _RETURN):
            n += 1
        return n

    @property
    def breaks_in_cells(self) -> bool:
        """Whether a quoted cell holds a line break."""
        return self._quoted and len(self._ends_everywhere) < len(self._breaks)

    def starts(self) -> np.ndarray:
        """Offset of each row that is not a blank line [rows] int64."""
        starts: np.ndarray = self._rows[0][self._filled]
        return starts

    def lines(self) -> np.ndarray:
        """Line of each row, counted from 0 at the start of the block [rows] int64."""
        return np.searchsorted(self._breaks, self.starts(), side="right").astype(np.int64)

    def first_longer_than(self, size: int) -> int | None:
        """Line of the first row of more than so many bytes, counted from 0; None where there is none."""
        starts, ends = self._rows
        longer = np.flatnonzero(ends - starts > size)
        if not len(longer):
            return None
        return int(np.searchsorted(self._breaks, starts[longer[0]], side="right"))

    def text(self, row: int) -> bytes:
        """The bytes of a row, without its line break."""
        starts, ends = self._rows
        return self._data[starts[self._filled][row] : ends[self._filled][row]].rstrip(b"\r\n")

    def widths(self) -> np.ndarray:
        """Number of cells of each row [rows] int64."""
        starts, ends = self._rows
        if self._quoted and self._quotes is None:
            walked: np.ndarray = self._walked[1][: len(starts)][self._filled]
            return walked
        marks = np.flatnonzero(self._bytes == self._delimiter)
        if self._quoted:
            assert self._quotes is not None
            marks = marks[np.searchsorted(self._quotes, marks) % 2 == 0]
        counts = np.searchsorted(marks, ends) - np.searchsorted(marks, starts) + 1
        widths: np.ndarray = counts[self._filled].astype(np.int64)
        return widths
