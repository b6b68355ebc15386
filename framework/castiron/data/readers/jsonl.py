"""JSON Lines: one object per line. pyarrow parses a block at once; Python's json where that fails."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import json as arrow_json

from castiron.data.options import ReadOptions
from castiron.data.readers.delimited import numbers_of
from castiron.data.readers.files import DataFile
from castiron.data.readers.lists import flatten, shape_of
from castiron.data.readers.source import BadValue, Block, Cells, FileColumns, Texts, locate
from castiron.data.readers.text_blocks import TextBlock, check_utf8, text_blocks
from castiron.data.schema import Column, Field, Schema
from castiron.diagnostics import DataError, Finding, Place, finding
from castiron.formats import number_format

_INSIDE = 1 << 20


class Literal(str):
    """A number as it is written in the file."""

    __slots__ = ()


class JsonLinesSource:
    """One file of JSON objects."""

    unit = "line"
    has_cells = False

    def __init__(
        self,
        file: DataFile,
        schema: Schema,
        options: ReadOptions,
        mapping: Mapping[str, tuple[Column, ...]],
    ) -> None:
        self.file = file
        self.columns = FileColumns({}, [])
        self._schema = schema
        self._options = options
        self._mapping = mapping
        self._kinds: dict[str, pa.DataType] = {}

    def blocks(self) -> Iterator[Block]:
        """The rows of the file in order.

        Raises:
            DataError: the file is empty, damaged, not UTF-8, or no row has a required key.
        """
        first = True
        with self.file.stream() as read:
            for block in text_blocks(
                self.file, read, encoding=self._options.encoding, delimiter=44, quoting=False
            ):
                check_utf8(self.file, block.data, block.first_line)
                lines = _Lines(self, block)
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

    def _begin(self, lines: _Lines) -> None:
        """Find the keys of the fields: in the first row, else anywhere in the first block."""
        if not lines.objects_head and not lines.objects:
            raise DataError(dataclasses.replace(f, severity="error") for f in self._refused(lines))
        present = list((lines.objects_head or lines.objects)[0])
        wanted = [self._mapping.get(f.name, f.columns) for f in self._schema.fields]
        if any(not set(alternatives) & set(present) for alternatives in wanted):
            for row in lines.objects:
                present += [key for key in row if key not in present]
        self.columns = locate(self.file.name, self._schema, self._mapping, present, named=True)
        for name, where in self.columns.located.items():
            example = next((v for o in lines.objects_head if (v := o.get(where.label)) is not None), None)
            self._kinds[name] = _kind(self._schema[name], example)

    def _read(self, lines: _Lines) -> Block:
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

    def _parsed(self, lines: _Lines) -> pa.Table | None:
        """The block as pyarrow reads it; None where a row or a cell is not of the expected kind."""
        labels = {name: where.label for name, where in self.columns.located.items()}
        if len(set(labels.values())) < len(labels):
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

    def _fast(self, column: pa.ChunkedArray, part: Field, lines: _Lines) -> Cells | None:
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
            made = numbers_of(flat, str(flat.type), as_text=partial(lines.texts, part, label))
            made.values = made.values.reshape(-1, *part.shape)
        else:
            made = numbers_of(values, str(kind), as_text=partial(lines.texts, part, label))
        made.source = "number" if kind != pa.bool_() else "bool"
        made.may_underflow = lambda: lines.block.may_underflow
        return made

    def _extra_keys(self, lines: _Lines) -> list[Finding]:
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

    def _refused(self, lines: _Lines) -> list[Finding]:
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


class _Lines:
    """The lines of a block, parsed by Python's json when something needs a closer look."""

    def __init__(self, source: JsonLinesSource, block: TextBlock) -> None:
        self._source = source
        self.block = block
        self.bad_rows: dict[int, tuple[str, int | None]] = {}
        starts = block.scan.starts()
        numbers = block.first_line + block.scan.lines()
        ends = np.append(starts[1:], len(block.data))
        first = np.frombuffer(block.data, dtype=np.uint8)[starts]
        keep = np.ones(len(starts), dtype=bool)
        for i in np.flatnonzero((first == 32) | (first == 9)):
            keep[i] = bool(bytes(block.data[starts[i] : ends[i]]).strip())
        self._starts, self._ends = starts[keep], ends[keep]
        self.numbers = numbers[keep]

    @cached_property
    def objects_head(self) -> list[dict[str, Any]]:
        """The first rows, to learn keys and kinds from."""
        found = (self._object(row, record=False) for row in range(min(100, len(self.numbers))))
        return [o for o in found if o is not None]

    @cached_property
    def _parsed(self) -> list[dict[str, Any] | None]:
        return [self._object(row, record=True) for row in range(len(self.numbers))]

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The rows that are JSON objects; numbers in them are `Literal`."""
        return [o for o in self._parsed if o is not None]

    @property
    def kept(self) -> np.ndarray:
        """Numbers of the rows that are JSON objects [rows] int64."""
        return np.array([i for i, o in enumerate(self._parsed) if o is not None], dtype=np.int64)

    def _object(self, row: int, *, record: bool) -> dict[str, Any] | None:
        text = bytes(self.block.data[self._starts[row] : self._ends[row]]).decode("utf-8")
        problem: tuple[str, int | None]
        try:
            value = json.loads(
                text,
                parse_float=Literal,
                parse_int=Literal,
                parse_constant=Literal,
                object_pairs_hook=_without_doubles,
            )
        except json.JSONDecodeError as error:
            problem = (f"{_shown(text)} ({error.msg})", error.colno)
        except _TwiceError as error:
            problem = (f"key {error.args[0]!r} twice", None)
        except RecursionError:
            problem = (f"{_shown(text)} (nested too deeply)", None)
        else:
            if isinstance(value, dict):
                return value
            problem = (_shown(text), None)
        if record:
            self.bad_rows[row] = problem
        return None

    def texts(self, part: Field, label: str) -> Texts:
        cells = self.cells(part, label)
        assert isinstance(cells, Texts)
        return cells

    def cells(self, part: Field, label: str) -> Cells:
        """The cells of a field, each from the text it is written as."""
        flat: list[str | None] = []
        bad: list[BadValue] = []
        size = int(np.prod(part.shape))
        written = 0
        for row, value in enumerate(o.get(label, _ABSENT) for o in self.objects):
            if value is _ABSENT:
                bad.append(BadValue(row, "D124", f"a row without the key {label!r}"))
                flat += [None] * size
                continue
            if value is None:
                flat += [None] * size
                continue
            items = _items(value, part.shape)
            if items is None:
                bad.append(_misshapen(row, value, part))
                flat += [None] * size
                continue
            texts, wrong, as_text = _texts(items, part)
            if wrong is not None:
                bad.append(BadValue(row, "D127" if part.is_text else "D101", wrong, part.form))
                texts = [None] * size
            written += as_text
            flat += texts
        try:
            cells = pa.array(flat, type=pa.string())
        except (UnicodeEncodeError, pa.ArrowInvalid):
            cells, more = _without_surrogates(flat, size)
            bad += more
        source = "text" if written or part.is_text else "number"
        return Texts(cells, source, bad, written)


_ABSENT = object()


class _TwiceError(ValueError):
    pass


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [k for k, _ in pairs]
        raise _TwiceError(next(k for k in keys if keys.count(k) > 1))
    return made


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


def _items(value: Any, shape: Sequence[int]) -> list[Any] | None:
    """The elements of a nested list in order; None if it has another shape."""
    level = [value]
    for size in shape:
        if any(not isinstance(v, list) or len(v) != size for v in level):
            return None
        level = [item for v in level for item in v]
    return None if any(isinstance(v, list | dict) for v in level) else level


def _misshapen(row: int, value: Any, part: Field) -> BadValue:
    expected = f"shape {list(part.shape)}" if part.shape else part.form
    if isinstance(value, list):
        return BadValue(row, "D116", shape_of(value), expected)
    if isinstance(value, dict):
        return BadValue(row, "D116", "a JSON object", expected)
    return BadValue(row, "D116", f"{_described(value)}", expected)


def _texts(items: list[Any], part: Field) -> tuple[list[str | None], str | None, int]:
    """Elements as the text they are written as; what is wrong with the first that cannot be; how many are
    JSON strings."""
    texts: list[str | None] = []
    written = 0
    labels = part.categories is not None or part.is_text
    for item in items:
        if item is None:
            texts.append(None)
        elif isinstance(item, bool):
            if part.is_text or (part.dtype != "bool" and part.categories is None):
                return texts, _described(item), written
            texts.append("true" if item else "false")
        elif isinstance(item, Literal):
            if part.is_text:
                return texts, _described(item), written
            texts.append(str(item))
        else:
            written += not labels
            texts.append(item)
    return texts, None, written


def _without_surrogates(flat: Sequence[str | None], size: int) -> tuple[pa.Array, list[BadValue]]:
    """Text with half a surrogate pair (`\\ud800`) is no text that UTF-8 can hold."""
    bad, clean = [], []
    for i, text in enumerate(flat):
        try:
            (text or "").encode("utf-8")
            clean.append(text)
        except UnicodeEncodeError:
            clean.append(None)
            bad.append(BadValue(i // size, "D127", f"{text!a}, half a surrogate pair", "Unicode text"))
    return pa.array(clean, type=pa.string()), bad


def _described(value: Any) -> str:
    if isinstance(value, bool):
        return f"{'true' if value else 'false'} (boolean)"
    if isinstance(value, Literal):
        return f"{value} (number)"
    return f"{_shown(value)} (text)" if isinstance(value, str) else _shown(str(value))


def _shown(text: str, limit: int = 60) -> str:
    text = text.rstrip("\r\n")
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
