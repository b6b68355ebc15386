"""Parquet: typed columns, read batch by batch; where there is no text, each column by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from castiron.data.readers.ahead import ahead
from castiron.data.readers.delimited import numbers_of
from castiron.data.readers.lists import flatten
from castiron.data.readers.parquet_texts import TextBounds, text_columns
from castiron.data.readers.source import BadValue, Block, Cells, Source, Texts, locate
from castiron.data.schema import Field
from castiron.diagnostics import DataError, Finding, Place, finding

_BATCH = 1 << 16
"""Rows read at a time; of text a batch may hold 2 GiB at most."""
_MOST = 1 << 20
"""Rows read at a time where there is no text. Fewer cost more: a column is decoded in one go."""
_MEMORY = 64 << 20
"""Bytes that such rows take at most."""


class ParquetSource(Source):
    """One Parquet file."""

    reads_ahead = True

    def blocks(self) -> Iterator[Block]:
        """The rows of the file in order.

        Raises:
            DataError: the file is empty or damaged, lacks a column, or a column's type has no numbers.
        """
        with self.file.seekable() as opened:
            if not self.file.size:
                raise DataError(
                    finding(
                        "D131",
                        "",
                        place=Place(file=self.file.name),
                        expected="rows",
                        received="an empty file",
                    )
                )
            with self._damage_told():
                reader = parquet.ParquetFile(opened, pre_buffer=True, page_checksum_verification=True)
                self._begin(reader.schema_arrow)
                self.rows = reader.metadata.num_rows
                # Repeated values take no room in the file: its own word on how large it is says little.
                sizes = [self._schema[name].row_bytes for name in self.columns.located]
                self.file.check_expansion(self.rows * sum(sizes), what=f" in {self.rows:,} rows")
                names = [reader.schema_arrow.names[w.position or 0] for w in self.columns.located.values()]
                texts = text_columns(reader.schema_arrow, names)
                own = None if texts else self._own_handle(opened)
                if own is None:
                    yield from ahead(self._rows_of(opened, reader, names, texts))
                else:
                    with own:
                        yield from self._columns_of(own, reader.metadata, sum(sizes))

    def _own_handle(self, opened: IO[bytes]) -> pa.NativeFile | None:
        """The file once more, for threads that read without Python's lock; None where it is packed."""
        try:
            own = pa.OSFile(self.file.name)
        except OSError:
            return None
        if os.path.samestat(os.fstat(own.fileno()), os.fstat(opened.fileno())):
            return own
        own.close()
        return None

    def _columns_of(
        self, file: pa.NativeFile, metadata: parquet.FileMetaData, row_bytes: int
    ) -> Iterator[Block]:
        """Blocks whose columns are read by who wants them, side by side."""
        total = metadata.num_rows
        size = max(min(_MEMORY // max(row_bytes, 1), _MOST), 1)
        columns = {
            name: _Column(
                parquet.ParquetFile(file, metadata=metadata, page_checksum_verification=True),
                where.label,
                size,
            )
            for name, where in self.columns.located.items()
        }
        for start in range(0, total, size):
            rows = min(size, total - start)
            yield Block(rows, {n: partial(self._column, n, c, rows) for n, c in columns.items()}, start + 1)

    def _column(self, name: str, column: _Column, rows: int) -> Cells:
        with self._damage_told():
            return cells_of(column.take(rows), self._schema[name])

    def _rows_of(
        self, opened: IO[bytes], reader: parquet.ParquetFile, names: Sequence[str], texts: Sequence[str]
    ) -> Iterator[Block]:
        """Blocks of whole rows."""
        row = 1
        bounds = TextBounds(self.file, self._options, texts)
        size = bounds.batch_size(opened, reader, _BATCH)
        for batch in reader.iter_batches(size, columns=names, use_threads=True):
            if batch.num_rows:
                yield self._read(bounds.checked(batch, row), row)
            row += batch.num_rows

    @contextmanager
    def _damage_told(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self.file.damaged("a Parquet file", error) from None

    def _begin(self, schema: pa.Schema) -> None:
        self.columns = locate(self.file.name, self._schema, self._mapping, schema.names, named=True)
        problems = [
            problem
            for name, where in self.columns.located.items()
            if (problem := self._unfit(self._schema[name], where.label, schema.types[where.position or 0]))
        ]
        if problems:
            raise DataError(problems)

    def _unfit(self, part: Field, label: str, kind: pa.DataType) -> Finding | None:
        """Why a column of this type cannot hold the field."""
        depth = 0
        while _is_list(kind):
            kind, depth = kind.value_type, depth + 1
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        place = Place(file=self.file.name, field=None)
        if depth != len(part.shape):
            received = f"lists nested {depth} deep" if depth else f"single values ({kind})"
            return finding(
                "D116",
                "",
                place=place,
                expected=f"{part.form} for field '{part.name}' in column {label!r}",
                received=received,
            )
        texts = _is_text(kind) or pa.types.is_null(kind)
        numbers = (
            pa.types.is_integer(kind)
            or pa.types.is_floating(kind)
            or pa.types.is_boolean(kind)
            or pa.types.is_decimal(kind)
        )
        if texts or (numbers and not part.is_text):
            return None
        remedy = None
        if pa.types.is_temporal(kind):
            remedy = "Store the moment as a number (an int64 of seconds, say), or leave the column out."
        return finding(
            "D127" if part.is_text else "D118",
            "",
            place=place,
            expected=f"{part.form} for field '{part.name}'",
            received=f"column {label!r} of type {kind}",
            remedy=remedy,
        )

    def _read(self, batch: pa.RecordBatch, row: int) -> Block:
        columns: dict[str, Cells] = {}
        for name, where in self.columns.located.items():
            values = batch.column(batch.schema.get_field_index(where.label))
            columns[name] = cells_of(values, self._schema[name])
        return Block(batch.num_rows, columns, row)


class _Column:
    """A column of a file, piece by piece."""

    def __init__(self, reader: parquet.ParquetFile, label: str, size: int) -> None:
        self._label = label
        self._batches = reader.iter_batches(size, columns=[label], use_threads=False)
        self._left: pa.Array | None = None

    def take(self, rows: int) -> pa.Array:
        """So many of the rows that come next."""
        pieces: list[pa.Array] = []
        while rows:
            if self._left is None or not len(self._left):
                batch = next(self._batches, None)
                if batch is None:
                    raise pa.ArrowInvalid(f"column {self._label!r} has fewer rows than the file says")
                self._left = batch.column(batch.schema.get_field_index(self._label))
            piece, self._left = self._left[:rows], self._left[rows:]
            pieces.append(piece)
            rows -= len(piece)
        return pieces[0] if len(pieces) == 1 else pa.concat_arrays(pieces)


def cells_of(values: pa.Array, part: Field) -> Cells:
    """An arrow array as cells of a field."""
    source = str(values.type)
    bad: list[BadValue] = []
    if part.shape:
        values, _, bad = flatten(values, part.shape)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    if _is_text(kind) or pa.types.is_null(kind) or pa.types.is_decimal(kind) or part.categories is not None:
        texts = _as_text(values)
        labels = part.is_text or part.categories is not None or not _is_text(kind)
        written = 0 if labels else len(texts) - texts.null_count
        return Texts(texts, source, bad, written)
    if pa.types.is_float16(kind):
        values = values.cast(pa.float32())
    made = numbers_of(values, source)
    made.bad = bad
    if part.shape:
        made.values = made.values.reshape(-1, *part.shape)
        made.missing = None if made.missing is None else made.missing.reshape(-1, *part.shape)
    return made


def _as_text(values: pa.Array) -> pa.Array:
    kind = values.type
    if pa.types.is_string(kind):
        return values
    if pa.types.is_large_string(kind) and len(values) and values.nbytes >= 2**31:
        raise pa.ArrowInvalid("a batch of text is larger than 2 GiB")
    if pa.types.is_floating(kind):
        # Labels stored as floats (pandas, where some were missing): 1.0 is the label '1'.
        whole = pc.equal(pc.round(values), values)
        if pc.all(pc.fill_null(whole, True)).as_py():
            try:
                return pc.cast(pc.cast(values, pa.int64()), pa.string())
            except pa.ArrowInvalid:
                pass
    return pc.cast(values, pa.string())


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
