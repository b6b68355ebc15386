"""Parquet: typed columns, read batch by batch."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from castiron.data.readers.delimited import numbers_of
from castiron.data.readers.lists import flatten
from castiron.data.readers.parquet_texts import TextBounds, text_columns
from castiron.data.readers.source import BadValue, Block, Cells, Source, Texts, locate
from castiron.data.schema import Field
from castiron.diagnostics import DataError, Finding, Place, finding

_BATCH = 1 << 16
"""Rows read at a time; four times as many where there is no text, of which a batch may hold 2 GiB at most."""


class ParquetSource(Source):
    """One Parquet file."""

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
            try:
                reader = parquet.ParquetFile(opened, pre_buffer=True, page_checksum_verification=True)
                self._begin(reader.schema_arrow)
                self.rows = reader.metadata.num_rows
                # Repeated values take no room in the file: its own word on how large it is says little.
                sizes = [self._schema[name].row_bytes for name in self.columns.located]
                self.file.check_expansion(self.rows * sum(sizes), what=f" in {self.rows:,} rows")
                names = [reader.schema_arrow.names[w.position or 0] for w in self.columns.located.values()]
                row = 1
                texts = TextBounds(self.file, self._options, text_columns(reader.schema_arrow, names))
                size = texts.batch_size(opened, reader, _BATCH if texts.columns else 4 * _BATCH)
                for batch in reader.iter_batches(size, columns=names, use_threads=True):
                    if batch.num_rows:
                        yield self._read(texts.checked(batch, row), row)
                    row += batch.num_rows
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
