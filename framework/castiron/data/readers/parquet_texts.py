"""Texts in Parquet, of which a few kilobytes can stand for terabytes: how many rows are read at a time so
that no batch fills the memory, and which are refused."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from castiron.data.options import ReadOptions
from castiron.data.readers.files import DataFile
from castiron.data.readers.text_blocks import row_too_long

_MEMORY = 256 << 20
"""Bytes that the texts of one column take in a batch, about."""


class TextBounds:
    """The text columns of a file, held against `data.read.largest_row` and `largest_expansion`.

    The file's own word on how large it is says little: a text that stands once in a dictionary is counted
    once, however many rows have it. So each row group's dictionary is looked at before any of its rows.

    Args:
        file: for messages, and its size.
        columns: names of top-level columns of texts.
    """

    def __init__(self, file: DataFile, options: ReadOptions, columns: Sequence[str]) -> None:
        self._file, self.columns = file, list(columns)
        self._largest = options.largest_row
        self._bytes = 0

    def batch_size(self, opened: object, reader: parquet.ParquetFile, most: int) -> int:
        """Rows to be read at a time, at most `most`.

        Raises:
            DataError: a text is longer than a row may be (D137), or all of them are too much (D138).
        """
        if not self.columns:
            return most
        metadata = reader.metadata
        longest = stated = 0
        for number in range(metadata.num_row_groups):
            # Of all columns: to look at one chunk's own metadata ends the process where they are damaged
            # (pyarrow 26 lets the C++ exception out).
            group = metadata.row_group(number)
            stated += group.total_byte_size
            longest = max(longest, group.total_byte_size // max(group.num_rows, 1))
        self._file.check_expansion(stated, what=" of text")
        self._check_longest(longest - 8)  # an average counts a few bytes beside the text
        again = parquet.ParquetFile(
            opened, metadata=metadata, read_dictionary=self.columns, buffer_size=1 << 20
        )
        for number in range(metadata.num_row_groups):
            first = next(again.iter_batches(1, row_groups=[number], columns=self.columns), None)
            for values in first.columns if first is not None else ():
                if pa.types.is_dictionary(values.type):
                    longest = max(longest, _longest(values.dictionary))
                    self._check_longest(_longest(values.dictionary))
        return max(min(_MEMORY // max(longest, 1), most), 1)

    def _check_longest(self, size: int) -> None:
        if size > self._largest:
            raise row_too_long(self._file, None, self._largest)

    def checked(self, batch: pa.RecordBatch, row: int) -> pa.RecordBatch:
        """A batch whose texts keep within the bounds, all that were read before among them.

        Args:
            row: number of its first row, from 1.

        Raises:
            DataError: D137, D138.
        """
        for name in self.columns:
            values = batch.column(batch.schema.get_field_index(name))
            if _longest(values) > self._largest:
                lengths = _lengths(values)
                at = pc.index(pc.greater(lengths, self._largest), pa.scalar(True)).as_py()
                raise row_too_long(self._file, row + at, self._largest)
            self._bytes += pc.sum(_lengths(values)).as_py() or 0
        if self.columns:
            self._file.check_expansion(self._bytes, what=" of text")
        return batch


def text_columns(schema: pa.Schema, names: Sequence[str]) -> list[str]:
    """Those of the columns that hold texts."""
    return [name for name in names if _holds_text(schema.field(name).type)]


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _lengths(values: pa.Array) -> pa.Array:
    """Bytes of each text."""
    if pa.types.is_dictionary(values.type):
        return pc.take(pc.binary_length(values.dictionary), values.indices)
    return pc.binary_length(values)


def _longest(values: pa.Array) -> int:
    return pc.max(_lengths(values)).as_py() or 0
