"""Parquet: typed columns, read side by side, or batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from castiron.data.readers.ahead import ahead
from castiron.data.readers.delimited import numbers_of
from castiron.data.readers.lists import flatten
from castiron.data.readers.parquet_texts import TextBounds, text_columns
from castiron.data.readers.parts import Parts
from castiron.data.readers.source import BadValue, Block, Cells, Source, Texts, locate
from castiron.data.schema import Field
from castiron.diagnostics import DataError, Finding, Place, finding

_BATCH = 1 << 16
"""Rows read at a time; four times as many where there is no text, of which a batch may hold 2 GiB at most."""
_GROUP = 1 << 20
"""Rows of the largest row group that is read whole, column by column; pyarrow's default."""
_DAMAGE = (pa.ArrowException, OSError, ValueError)


class ParquetSource(Source):
    """One Parquet file."""

    reads_ahead = True

    def blocks(self) -> Iterator[Block]:
        """The rows of the file in order.

        Raises:
            DataError: the file is empty or damaged, lacks a column, or a column's type has no numbers.
        """
        with self.file.parts() as opened:
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
            try:
                reader = _reader(opened(), pre_buffer=True)
                self._begin(reader.schema_arrow)
                self.rows = reader.metadata.num_rows
                # Repeated values take no room in the file: its own word on how large it is says little.
                sizes = [self._schema[name].row_bytes for name in self.columns.located]
                self.file.check_expansion(self.rows * sum(sizes), what=f" in {self.rows:,} rows")
                names = [reader.schema_arrow.names[w.position or 0] for w in self.columns.located.values()]
                if _may_be_read_whole(reader, names):
                    yield from self._groups(reader, opened)
                else:
                    texts = TextBounds(self.file, self._options, text_columns(reader.schema_arrow, names))
                    size = texts.batch_size(opened(), reader, _BATCH if texts.columns else 4 * _BATCH)
                    yield from ahead(self._batches(reader, names, size, texts))
            except _DAMAGE as error:
                raise self.file.damaged("a Parquet file", error) from None

    def _batches(
        self, reader: parquet.ParquetFile, names: list[str], size: int, texts: TextBounds
    ) -> Iterator[Block]:
        row = 1
        for batch in reader.iter_batches(size, columns=names, use_threads=True):
            if batch.num_rows:
                yield self._read(texts.checked(batch, row), row)
            row += batch.num_rows

    def _groups(self, reader: parquet.ParquetFile, opened: Callable[[], Parts]) -> Iterator[Block]:
        """Row group by row group, of which each column is read by the thread that judges it."""
        idle: SimpleQueue[parquet.ParquetFile] = SimpleQueue()
        """Readers that no thread uses: one does not serve two at once."""

        def column(group: int, rows: int, name: str) -> Cells:
            try:
                try:
                    own = idle.get_nowait()
                except Empty:
                    own = _reader(opened(), metadata=reader.metadata)
                label = self.columns.located[name].label
                read = own.read_row_group(group, columns=[label], use_threads=False).column(0)
                idle.put(own)
                # To combine the pieces copies them, even a single one.
                whole = read.chunk(0) if read.num_chunks == 1 else read.combine_chunks()
                if len(whole) != rows:
                    raise ValueError(f"{len(whole):,} values in a column of {rows:,} rows")
                return cells_of(whole, self._schema[name])
            except _DAMAGE as error:
                raise self.file.damaged("a Parquet file", error) from None

        row = 1
        for group, rows in enumerate(_group_sizes(reader)):
            if rows:
                columns = {name: partial(column, group, rows, name) for name in self.columns.located}
                yield Block(rows, columns, row)
            row += rows

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


def _reader(file: Parts, **options: Any) -> parquet.ParquetFile:
    return parquet.ParquetFile(file, page_checksum_verification=True, **options)


def _may_be_read_whole(reader: parquet.ParquetFile, names: list[str]) -> bool:
    """Whether the columns are plain numbers, in row groups of a size to be read at once."""
    kinds = [reader.schema_arrow.field(name).type for name in names]
    plain = all(pa.types.is_integer(k) or pa.types.is_floating(k) or pa.types.is_boolean(k) for k in kinds)
    sizes = _group_sizes(reader)
    bounded = all(0 <= size <= _GROUP for size in sizes)
    return plain and bounded and sum(sizes) >= _BATCH * max(len(sizes), 1)


def _group_sizes(reader: parquet.ParquetFile) -> list[int]:
    """Rows of each row group, as the file says."""
    return [reader.metadata.row_group(i).num_rows for i in range(reader.num_row_groups)]


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
