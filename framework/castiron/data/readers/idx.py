"""IDX files (MNIST and its likes): images in one file, their labels in another beside it.

Format: two zero bytes, a byte for the number format, a byte for the number of axes, the axes' sizes as
big-endian int32, and the values, big-endian (yann.lecun.com/exdb/mnist).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from castiron.data.readers.files import DataFile
from castiron.data.readers.source import Block, Cells, Numbers, Source, locate
from castiron.data.schema import Field
from castiron.diagnostics import DataError, Place, finding

COLUMNS = ("image", "label")
"""What the values of the two files are called; a field is read from the column of its name."""

_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_PIECE = 4 << 20
"""Bytes of one file read at a time."""


class IdxSource(Source):
    """Images, `…images-idx3-ubyte`, and where labels are asked for, `…labels-idx1-ubyte` beside them."""

    def _prepare(self) -> None:
        self._labels = labels_of(self.file.path)

    def blocks(self) -> Iterator[Block]:
        """The rows of both files in order.

        Raises:
            DataError: a file is damaged or missing, or the files or a field's shape do not agree.
        """
        present = [COLUMNS[0], *COLUMNS[1:][: self._labels is not None]]
        self.columns = locate(self.file.name, self._schema, self._mapping, present, named=True)
        with ExitStack() as stack:
            arrays = {}
            for name, where in self.columns.located.items():
                file = self.file
                if where.label == COLUMNS[1]:
                    assert self._labels is not None
                    file = DataFile(self._labels, self._options)
                    self.beside = (file,)
                arrays[name] = _Values(file, stack.enter_context(file.stream()))
            self.rows = self._check(arrays)
            step = max(1, _PIECE // max(array.row_bytes for array in arrays.values()))
            for start in range(0, self.rows, step):
                count = min(step, self.rows - start)
                columns: dict[str, Cells] = {n: array.read(count) for n, array in arrays.items()}
                yield Block(count, columns, start + 1)
            for array in arrays.values():
                array.end()

    def _check(self, arrays: Mapping[str, _Values]) -> int:
        for name, array in arrays.items():
            part = self._schema[name]
            if array.shape != part.shape:
                raise _error(
                    "D116",
                    array.file,
                    f"{_form(part)} for field '{name}'",
                    f"values of shape {list(array.shape)}",
                )
        lengths = {array.file.name: array.rows for array in arrays.values()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{rows:,} in {file}" for file, rows in lengths.items())
            raise _error("D136", self.file, "as many labels as images", told)
        return max(lengths.values())


def labels_of(images: Path) -> Path | None:
    """`train-images-idx3-ubyte.gz` → `train-labels-idx1-ubyte.gz`, where it is there."""
    name = re.sub(r"images([-.])idx\d", r"labels\1idx1", images.name)
    path = images.with_name(name)
    return path if name != images.name and path.is_file() else None


class _Values:
    """One file, read row by row from the front."""

    def __init__(self, file: DataFile, read: Callable[[int], bytes]) -> None:
        self.file = file
        self._read = read
        zero, code, axes = self._head()
        if zero or code not in _DTYPES or not axes:
            raise file.damaged("an IDX file (MNIST's format)", "it does not begin as one")
        self._dtype = np.dtype(_DTYPES[code])
        sizes = [int(n) for n in np.frombuffer(self._exactly(4 * axes), dtype=">i4")]
        if min(sizes) < 0:
            raise file.damaged("an IDX file (MNIST's format)", "an axis has a negative size")
        self.rows: int = sizes[0]
        self.shape = tuple(sizes[1:])
        self.row_bytes = max(1, int(np.prod(self.shape))) * self._dtype.itemsize

    def read(self, rows: int) -> Numbers:
        """The next rows [rows, *shape], in the machine's byte order."""
        values = np.frombuffer(self._exactly(rows * self.row_bytes), dtype=self._dtype)
        values = values.reshape(rows, *self.shape).astype(self._dtype.newbyteorder("="))
        return Numbers(values, None, values.dtype.name)

    def end(self) -> None:
        """Read past the end: gzip checks its checksum only there.

        Raises:
            DataError: the file goes on after its last value, or its checksum is wrong.
        """
        if self._read(1):
            raise self.file.damaged("an IDX file (MNIST's format)", "it is longer than its head says")

    def _head(self) -> tuple[int, int, int]:
        head = self._exactly(4)
        return head[0] | head[1], head[2], head[3]

    def _exactly(self, size: int) -> bytes:
        data = self._read(size)
        if len(data) < size:
            raise self.file.damaged("an IDX file (MNIST's format)", "it ends early")
        return data


def _form(part: Field) -> str:
    return part.form if part.shape else f"{part.form}, a single number,"


def _error(code: str, file: DataFile, expected: str, received: str) -> DataError:
    return DataError(finding(code, "", place=Place(file=file.name), expected=expected, received=received))
