"""NumPy archives: one array per field, read piece by piece, never unpickled."""

from __future__ import annotations

import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa

from castiron.data.readers.source import Block, Cells, Located, Numbers, Source, Texts, locate
from castiron.data.readers.text_blocks import row_too_long
from castiron.data.schema import Field
from castiron.diagnostics import DataError, Finding, Place, finding

_PIECE = 4 << 20
"""Bytes of one array read at a time."""
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, SyntaxError,
    tokenize.TokenError, OSError, EOFError, ValueError, KeyError, ArithmeticError, RuntimeError,
)  # fmt: skip
"""What zipfile and numpy.lib.format raise on files that are broken (or locked by a password)."""


class NpzSource(Source):
    """One .npz file. Arrays are [rows, *shape]."""

    def blocks(self) -> Iterator[Block]:
        """The rows of the file in order.

        Raises:
            DataError: the file is damaged or expands too far, lacks an array, or an array has objects,
                another shape or length, or rows that are too long.
        """
        with self.file.seekable() as opened, ExitStack() as stack:
            if not self.file.size:
                raise self._error("D131", "rows", "an empty file")
            try:
                archive = stack.enter_context(zipfile.ZipFile(opened))
                present = [n.removesuffix(".npy") for n in archive.namelist()]
                self.columns = locate(self.file.name, self._schema, self._mapping, present, named=True)
                arrays = {}
                for name, where in self.columns.located.items():
                    info = archive.infolist()[where.position or 0]
                    self.file.check_expansion(info.file_size, info.compress_size, f" in '{where.label}'")
                    arrays[name] = _Member(stack.enter_context(archive.open(info)))
                rows = self._check(arrays)
                row_bytes = max(a.row_bytes for a in arrays.values())
                if row_bytes > self._options.largest_row:
                    raise row_too_long(self.file, None, self._options.largest_row)
                step = max(1, _PIECE // max(1, row_bytes))
                for start in range(0, rows, step):
                    count = min(step, rows - start)
                    columns = {n: self._cells(self._schema[n], a.read(count)) for n, a in arrays.items()}
                    yield Block(count, columns, start + 1)
                for array in arrays.values():
                    array.end()
            except _DAMAGE as error:
                raise self.file.damaged("a NumPy archive (.npz)", error) from None

    def _check(self, arrays: Mapping[str, _Member]) -> int:
        problems: list[Finding] = []
        for name, array in arrays.items():
            part, where = self._schema[name], self.columns.located[name]
            expected = f"{part.form} for field '{name}'"
            text = array.dtype.kind in "US"
            if array.dtype.hasobject:
                problems.append(
                    self._finding(
                        "D117", expected, f"array '{where.label}' of Python objects, which is not unpickled"
                    )
                )
            elif array.dtype.kind not in ("US" if part.is_text else "fiubUS"):
                code = "D127" if part.is_text else "D118"
                problems.append(
                    self._finding(code, expected, f"array '{where.label}' of dtype {array.dtype}")
                )
            elif not array.shape or array.shape[1:] != part.shape:
                problems.append(
                    self._finding(
                        "D116", f"{expected}, so an array of shape [rows{_sizes(part)}]", _shape(array, where)
                    )
                )
            elif text and part.shape:
                problems.append(self._finding("D118", expected, f"text in array '{where.label}'"))
        lengths = {self.columns.located[n].label: a.shape[0] for n, a in arrays.items() if a.shape}
        if not problems and len(set(lengths.values())) > 1:
            told = ", ".join(f"'{label}' {length:,}" for label, length in lengths.items())
            problems.append(self._finding("D136", "arrays with one number of rows", told))
        if problems:
            raise DataError(problems)
        return next(iter(lengths.values()))

    def _cells(self, part: Field, values: np.ndarray) -> Cells:
        kind = values.dtype.kind
        if kind in "US":
            texts = [_decoded(v) for v in values.tolist()]
            labels = part.is_text or part.categories is not None
            return Texts(pa.array(texts, type=pa.string()), "text", (), 0 if labels else len(texts))
        if part.categories is not None:
            whole = values
            if kind == "f" and np.isfinite(values).all() and (np.rint(values) == values).all():
                whole = values.astype(np.int64)
            words = ["true" if v is True else "false" if v is False else str(v) for v in whole.tolist()]
            missing = np.isnan(values) if kind == "f" else None
            return Texts(pa.array(words, type=pa.string(), mask=missing), values.dtype.name)
        native = values.astype(values.dtype.newbyteorder("="), copy=False)
        return Numbers(native, None, native.dtype.name)

    def _finding(self, code: str, expected: str, received: str) -> Finding:
        return finding(code, "", place=Place(file=self.file.name), expected=expected, received=received)

    def _error(self, code: str, expected: str, received: str) -> DataError:
        return DataError(self._finding(code, expected, received))


class _Member:
    """One array of an archive, read row by row from the front."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        version = np.lib.format.read_magic(cast(Any, file))
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        self.shape, fortran, self.dtype = read(cast(Any, file))
        self._whole: np.ndarray | None = None
        self._row = 0
        if fortran and len(self.shape) > 1 and not self.dtype.hasobject:
            # Stored column by column: its rows are only there once all of it is.
            data = self._exactly(int(np.prod(self.shape)) * self.dtype.itemsize)
            self._whole = np.frombuffer(data, dtype=self.dtype).reshape(self.shape, order="F")

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:])) * self.dtype.itemsize

    def read(self, rows: int) -> np.ndarray:
        """The next rows [rows, *shape]."""
        if self._whole is not None:
            self._row += rows
            return np.ascontiguousarray(self._whole[self._row - rows : self._row])
        data = self._exactly(rows * self.row_bytes)
        return np.frombuffer(data, dtype=self.dtype).reshape(rows, *self.shape[1:])

    def end(self) -> None:
        """Read past the end: zipfile checks the checksum only there.

        Raises:
            ValueError: the array goes on after its last row.
            BadZipFile: the checksum is wrong.
        """
        if self._file.read(1):
            raise ValueError("an array is longer than its header says")

    def _exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise EOFError("an array ends early")
        return data


def _decoded(value: str | bytes) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _sizes(part: Field) -> str:
    return "".join(f", {size}" for size in part.shape)


def _shape(array: _Member, where: Located) -> str:
    return f"array '{where.label}' of shape {list(array.shape)}"
