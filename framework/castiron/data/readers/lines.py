"""Plain text: every line is a row with the one column `text`. Empty lines are rows, too."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

import pyarrow as pa

from castiron.data.readers.source import Block, Source, Texts, locate
from castiron.data.readers.text_blocks import row_too_long
from castiron.diagnostics import DataError, Place, finding

COLUMN = "text"
_PIECE = 1 << 20
"""Bytes read at a time."""


class LinesSource(Source):
    """One file of lines. A line ends with a line feed, alone or after a carriage return, and no other way."""

    unit = "line"

    def _prepare(self) -> None:
        self.columns = locate(self.file.name, self._schema, self._mapping, [COLUMN], named=True)
        self._encoding = self._options.encoding
        self._largest = self._options.largest_row

    def blocks(self) -> Iterator[Block]:
        """The lines of the file in order.

        Raises:
            DataError: the file is damaged, not in its encoding, or has a line that is too long.
        """
        line, size = 1, 0
        begun: list[str] = []  # of a line whose end was not read yet
        decoder = codecs.getincrementaldecoder(self._encoding)()
        with self.file.stream() as read:
            while True:
                piece = read(_PIECE)
                try:
                    text = decoder.decode(piece, final=not piece)
                except UnicodeDecodeError as error:
                    raise self._undecodable(line, error) from None
                if "\n" in text or not piece:
                    *whole, rest = ("".join(begun) + text).split("\n")
                    if not piece and rest:
                        whole.append(rest)
                    if whole:
                        yield self._block(whole, line)
                        line += len(whole)
                    text, size = rest, 0
                    begun.clear()
                if not piece:
                    return
                begun.append(text)
                size += len(text)
                if size > self._largest:
                    raise row_too_long(self.file, line, self._largest)

    def _block(self, lines: list[str], first: int) -> Block:
        if 4 * max(map(len, lines)) > self._largest:  # in UTF-8 a character has four bytes at most
            for number, text in enumerate(lines, first):
                if len(text.encode()) > self._largest:
                    raise row_too_long(self.file, number, self._largest)
        cells = pa.array([text.removesuffix("\r") for text in lines], type=pa.large_string())
        return Block(len(lines), {n: Texts(cells, "text") for n in self.columns.located}, first)

    def _undecodable(self, line: int, error: UnicodeDecodeError) -> DataError:
        at = bytes(error.object[error.start : error.start + 1])
        line += bytes(error.object[: error.start]).count(b"\n")
        return DataError(
            finding(
                "D133", "", place=Place(file=self.file.name, line=line), expected=f"text in {self._encoding}",
                received=f"byte 0x{at.hex().upper()}",
            )
        )  # fmt: skip
