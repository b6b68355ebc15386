"""Text files as blocks of complete rows in UTF-8."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from castiron.data.readers.files import DataFile
from castiron.data.readers.rows import RowScan
from castiron.diagnostics import DataError, Place, finding

BLOCK_SIZE = 8 << 20
"""Bytes read at a time."""

_MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass
class TextBlock:
    """Complete rows: their bytes, where they are in the file, and how they divide."""

    data: memoryview
    first_line: int
    scan: RowScan
    _whole: bytes
    """What `data` is the beginning of."""

    def holds(self, mark: bytes) -> bool:
        """Whether these bytes occur in the rows."""
        return self._whole.find(mark, 0, len(self.data)) >= 0

    @cached_property
    def may_underflow(self) -> bool:
        """Whether there could be a number too small for float64 that is not zero: one with a negative
        exponent, or with hundreds of zeros."""
        exponent = (self.holds(b"e") and self.holds(b"e-")) or (self.holds(b"E") and self.holds(b"E-"))
        return exponent or (self._has_long_run(48) and self.holds(b"0" * 300))

    def _has_long_run(self, byte: int) -> bool:
        """Whether 300 of this byte in a row are possible: then some three at a distance of 64, from a
        multiple of 128 on, are this byte."""
        data = np.frombuffer(self.data, dtype=np.uint8)
        starts = np.flatnonzero(data[:-128:128] == byte) * 128
        return bool(((data[starts + 64] == byte) & (data[starts + 128] == byte)).any())


def text_blocks(
    file: DataFile,
    read: Callable[[int], bytes],
    *,
    encoding: str,
    delimiter: int,
    quoting: bool,
    largest_row: int,
    whitespace: bool = False,
    block_size: int = BLOCK_SIZE,
) -> Iterator[TextBlock]:
    """Blocks of about `block_size` bytes, each of complete rows, transcoded to UTF-8, without a BOM.

    Args:
        largest_row: bytes; a longer row is an error (a file without line breaks would take all memory).

    Raises:
        DataError: a byte is not of this encoding, a quote is never closed, a row is too long (D137).
    """
    decode = _Transcoder(file, encoding)
    rest, line, size, last = b"", 1, block_size, False
    while not last:
        piece = read(size)
        last = not piece
        data = rest + decode(piece, final=last)
        if not data:
            continue
        scan = RowScan(data, delimiter, quoting=quoting and not whitespace, last=last)
        if scan.unclosed is not None:
            raise _unclosed(file, data, scan.unclosed, line)
        rest = data[scan.end :]
        if not scan.end:
            if len(rest) > largest_row:
                raise row_too_long(file, line, largest_row)
            size = min(2 * size, largest_row)  # a long row: read it in few pieces, not in many
            continue
        size = block_size
        if scan.end > largest_row and (row := scan.first_longer_than(largest_row)) is not None:
            raise row_too_long(file, line + row, largest_row)
        lines = scan.n_lines
        if whitespace:
            data = _tabs(data[: scan.end])
            scan = RowScan(data, delimiter, quoting=quoting, last=True)
        yield TextBlock(memoryview(data)[: scan.end], line, scan, data)
        line += lines


def check_utf8(file: DataFile, data: bytes | memoryview, first_line: int) -> None:
    """Refuse bytes that are not UTF-8, naming the first.

    Raises:
        DataError: with file, line and byte.
    """
    offsets = pa.array([0, len(data)], type=pa.int64()).buffers()[1]
    whole = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(data)])
    try:
        whole.cast(pa.large_string())
    except pa.ArrowInvalid:
        data = bytes(data)
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            line = first_line + data.count(b"\n", 0, error.start)
            raise wrong_encoding(file, "utf-8", data, error, line) from None


def wrong_encoding(
    file: DataFile, encoding: str, data: bytes, error: UnicodeDecodeError, line: int
) -> DataError:
    """The error for a byte that is not of the encoding; `line` is the line it is on."""
    begin = data.rfind(b"\n", 0, error.start) + 1
    byte = data[error.start]
    remedy = None
    if encoding == "utf-8":
        likely = "windows-1252" if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else "the one it was written in"
        remedy = f"Set data.encoding to the file's own, perhaps {likely}, or convert the file to UTF-8."
    return DataError(
        finding(
            "D133",
            "",
            place=Place(file=file.name, line=line),
            expected=f"text in {encoding}",
            received=f"byte 0x{byte:02x} as byte {error.start - begin + 1} of the line",
            remedy=remedy,
            around=data[max(begin, error.start - 20) : error.start + 20].decode("latin-1"),
        )
    )


class _Transcoder:
    """Bytes of the file's encoding to UTF-8, piece by piece; drops the byte-order mark."""

    def __init__(self, file: DataFile, encoding: str) -> None:
        self._file = file
        self._encoding = encoding
        self._plain = codecs.lookup(encoding).name in ("utf-8", "ascii", "utf-8-sig")
        self._decoder = None if self._plain else codecs.getincrementaldecoder(encoding)()
        self._start = True
        self._line = 1

    def __call__(self, piece: bytes, *, final: bool) -> bytes:
        if self._start and piece:
            self._start = False
            self._refuse_other_unicode(piece)
            if self._plain:
                piece = piece.removeprefix(codecs.BOM_UTF8)
        if self._decoder is None:
            return piece
        pending = self._decoder.getstate()[0]
        try:
            text = self._decoder.decode(piece, final)
        except UnicodeDecodeError as error:
            data = pending + piece
            line = self._line + data.count(b"\n", 0, error.start)
            raise wrong_encoding(self._file, self._encoding, data, error, line) from None
        self._line += text.count("\n")
        return text.removeprefix("\ufeff").encode("utf-8")

    def _refuse_other_unicode(self, piece: bytes) -> None:
        if not self._plain:
            return
        for mark, name in _MARKS.items():
            if piece.startswith(mark):
                raise DataError(
                    finding(
                        "D133",
                        "",
                        place=Place(file=self._file.name, line=1),
                        expected=f"text in {self._encoding}",
                        received=f"a byte-order mark of {name}",
                        remedy=f"Set data.encoding to {name}.",
                    )
                )


def row_too_long(file: DataFile, line: int | None, largest: int) -> DataError:
    """The error for a row that is not read to its end."""
    return DataError(
        finding(
            "D137",
            "",
            place=Place(file=file.name, line=line),
            expected=f"rows of at most {largest:,} bytes",
            received="a longer one",
        )
    )


def _unclosed(file: DataFile, data: bytes, offset: int, first_line: int) -> DataError:
    begin = max(data.rfind(b"\n", 0, offset) + 1, 0)
    return DataError(
        finding(
            "D126",
            "",
            place=Place(file=file.name, line=first_line + data.count(b"\n", 0, offset)),
            expected="a closing quote for every opening one",
            received=f"a quote that is never closed, as byte {offset - begin + 1} of the line",
        )
    )


_BLANKS = re.compile(rb'"(?:[^"\n]|"")*"|[ \t]+')


def _tabs(data: bytes) -> bytes:
    """Runs of blanks outside quotes as one tab each; blanks around a line go. Keeps every line break."""
    text = _BLANKS.sub(lambda m: m.group() if m.group().startswith(b'"') else b"\t", data)
    return re.sub(rb"^\t|\t(?=\r?\n|\Z)", b"", text, flags=re.MULTILINE)
