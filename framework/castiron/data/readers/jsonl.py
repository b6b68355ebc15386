"""JSON Lines: one object per line. pyarrow parses a block at once; Python's json where that fails."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import json as arrow_json

from castiron.data.readers.delimited import numbers_of
from castiron.data.readers.json_lines import JsonLines, Literal
from castiron.data.readers.lists import flatten
from castiron.data.readers.source import Block, Cells, Source, Texts, locate
from castiron.data.readers.text_blocks import check_utf8, text_blocks
from castiron.data.schema import Field
from castiron.diagnostics import DataError, Finding, Place, finding
from castiron.formats import number_format

_INSIDE = 1 << 20


class JsonLinesSource(Source):
    """One file of JSON objects."""

    unit = "line"

    def _prepare(self) -> None:
        self._kinds: dict[str, pa.DataType] = {}

    def blocks(self) -> Iterator[Block]:
        """The rows of the file in order.

        Raises:
            DataError: the file is empty, damaged, not UTF-8, or no row has a required key.
        """
        first = True
        with self.file.stream() as read:
            blocks = text_blocks(
                self.file,
                read,
                encoding=self._options.encoding,
                delimiter=44,
                quoting=False,
                largest_row=self._options.largest_row,
            )
            for block in blocks:
                check_utf8(self.file, block.data, block.first_line)
                lines = JsonLines(block)
                if not len(lines.numbers):
                    continue
                if first:
                    self._begin(lines)
                    first = False
                yield self._read(lines)
        if first:
            raise DataError(
                finding(
                    "D131", "", place=Place(file=self.file.name), expected="rows", received="an empty file"
                )
            )

    def _begin(self, lines: JsonLines) -> None:
        """Find the keys of the fields: in the first row, else anywhere in the first block."""
        if not lines.objects_head and not lines.objects:
            raise DataError(dataclasses.replace(f, severity="error") for f in self._refused(lines))
        present = list((lines.objects_head or lines.objects)[0])
        wanted = [self._mapping.get(f.name, f.columns) for f in self._schema.fields]
        if any(not set(alternatives) & set(present) for alternatives in wanted):
            present = list(dict.fromkeys(key for row in lines.objects for key in row))
        self.columns = locate(self.file.name, self._schema, self._mapping, present, named=True)
        for name, where in self.columns.located.items():
            example = next((v for o in lines.objects_head if (v := o.get(where.label)) is not None), None)
            self._kinds[name] = _kind(self._schema[name], example)

    def _read(self, lines: JsonLines) -> Block:
        table = self._parsed(lines)
        columns: dict[str, Cells] = {}
        rows = len(lines.numbers)
        for name, where in self.columns.located.items():
            part = self._schema[name]
            cells = None if table is None else self._fast(table.column(where.label), part, lines)
            columns[name] = cells if cells is not None else lines.cells(part, where.label)
        findings = self._extra_keys(lines) if table is None and self._schema.strict else []
        if lines.bad_rows:
            findings += self._refused(lines)
            rows = len(lines.kept)
        numbers = lines.numbers[lines.kept] if lines.bad_rows else lines.numbers
        regular = rows and numbers[-1] - numbers[0] == rows - 1
        first = int(numbers[0]) if regular else numbers
        return Block(rows, columns, first, findings, len(lines.bad_rows))

    def _parsed(self, lines: JsonLines) -> pa.Table | None:
        """The block as pyarrow reads it; None where a row or a cell is not of the expected kind."""
        labels = {name: where.label for name, where in self.columns.located.items()}
        if len(set(labels.values())) < len(labels) or not lines.all_open_an_object:
            return None
        explicit = pa.schema([(labels[name], self._kinds[name]) for name in labels])
        data = lines.block.data
        for inside in (_INSIDE, len(data) + 1):
            try:
                table = arrow_json.read_json(
                    pa.BufferReader(pa.py_buffer(data)),
                    read_options=arrow_json.ReadOptions(block_size=inside),
                    parse_options=arrow_json.ParseOptions(
                        explicit_schema=explicit,
                        newlines_in_values=False,
                        unexpected_field_behavior="error" if self._schema.strict else "ignore",
                    ),
                )
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                if "straddling" in str(error) and inside < len(data):
                    continue
                return None
            return table if table.num_rows == len(lines.numbers) else None
        return None

    def _fast(self, column: pa.ChunkedArray, part: Field, lines: JsonLines) -> Cells | None:
        """Cells as pyarrow read them; None where they must be read again, one by one."""
        if column.null_count:
            return None  # a null, or a key that is absent: not the same
        joined = column.combine_chunks()
        values = joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined
        kind = values.type
        label = self.columns.located[part.name].label
        if pa.types.is_string(kind):
            values.validate(full=True)
            return Texts(values, "text")
        if part.is_text or (part.categories is not None and pa.types.is_floating(kind)):
            return None
        if part.categories is not None:
            return Texts(pc.cast(values, pa.string()), "bool" if kind == pa.bool_() else "number")
        if part.shape:
            flat, _, bad = flatten(values, part.shape)
            if bad or flat.null_count:
                return None
            made = numbers_of(flat, str(flat.type), as_text=partial(lines.cells, part, label))
            made.values = made.values.reshape(-1, *part.shape)
        else:
            made = numbers_of(values, str(kind), as_text=partial(lines.cells, part, label))
        made.source = "number" if kind != pa.bool_() else "bool"
        made.may_underflow = lambda: lines.block.may_underflow
        return made

    def _extra_keys(self, lines: JsonLines) -> list[Finding]:
        known = {where.label for where in self.columns.located.values()}
        rows = zip(lines.numbers[lines.kept].tolist(), lines.objects, strict=True)
        return [
            finding(
                "D122",
                "",
                place=Place(file=self.file.name, line=number),
                expected=f"the keys of the schema only ({', '.join(sorted(known))})",
                received=", ".join(repr(key) for key in row if key not in known),
                severity="error",
            )
            for number, row in rows
            if not known.issuperset(row)
        ]

    def _refused(self, lines: JsonLines) -> list[Finding]:
        dropped = self._schema.bad_rows == "drop"
        return [
            finding(
                "D125",
                "",
                place=Place(file=self.file.name, line=int(lines.numbers[row]), column=column),
                expected="one JSON object on the line",
                received=received,
                severity="info" if dropped else "error",
            )
            for row, (received, column) in lines.bad_rows.items()
        ]


def _kind(part: Field, example: Any) -> pa.DataType:
    """The pyarrow type to read a field as."""
    if part.is_text:
        return pa.string()
    if part.categories is not None:
        if isinstance(example, bool):
            return pa.bool_()
        if isinstance(example, Literal):
            return pa.int64() if example.lstrip("-").isdigit() else pa.float64()
        return pa.string()
    assert part.dtype is not None
    form = number_format(part.dtype)
    kind = pa.bool_() if form.kind == "bool" else pa.float64()
    if form.is_integer:
        kind = pa.uint64() if part.dtype == "uint64" else pa.int64()
    for _ in part.shape:
        kind = pa.list_(kind)
    return kind
