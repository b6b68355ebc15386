"""CSV, TSV and the like: pyarrow parses numbers at once, and text only where a block holds something odd."""

from __future__ import annotations

import csv as python_csv
import io
import re
from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from castiron.data.options import ReadOptions
from castiron.data.readers.files import DataFile
from castiron.data.readers.source import Block, Cells, Numbers, Source, Texts, locate
from castiron.data.readers.text_blocks import TextBlock, check_utf8, text_blocks
from castiron.data.schema import Column, Field, Schema
from castiron.diagnostics import DataError, Finding, Place, finding
from castiron.formats import number_format

_INSIDE = 1 << 20
"""Bytes that pyarrow parses in one task."""
_CONVERSION = re.compile(r"In CSV column #(\d+)")
_STRIKES = 2
"""Blocks in a row whose numbers did not parse, before a column is read as text from the start."""


def spellings_of(field: Field, options: ReadOptions, *, text_file: bool) -> tuple[str, ...]:
    """Cell texts that mean missing for this field, without surrounding blanks."""
    if field.missing.spellings is not None:
        return tuple(s.strip(" \t") for s in field.missing.spellings)
    if options.missing_values is not None and not field.is_text:
        return tuple(s.strip(" \t") for s in options.missing_values)
    return ("",) if text_file else ()


class DelimitedSource(Source):
    """One file of rows and cells."""

    unit = "line"
    has_cells = True

    def __init__(
        self,
        file: DataFile,
        schema: Schema,
        options: ReadOptions,
        mapping: Mapping[str, tuple[Column, ...]],
        *,
        tabs: bool,
    ) -> None:
        super().__init__(file, schema, options, mapping)
        self._whitespace = options.delimiter == "whitespace"
        self._delimiter = "\t" if self._whitespace or (tabs and options.delimiter is None) else ","
        if options.delimiter not in (None, "whitespace"):
            self._delimiter = str(options.delimiter)
        self._quoting = not tabs if options.quoting is None else options.quoting
        self._width = 0
        self._strikes: dict[str, int] = {}
        self._spellings = {f.name: spellings_of(f, options, text_file=True) for f in schema.fields}
        numeric = {s for f in schema.fields if _wants_numbers(f) for s in self._spellings[f.name]}
        self._nulls = sorted(numeric | {f" {s}" for s in numeric})

    def blocks(self) -> Iterator[Block]:
        """The rows of the file in order.

        Raises:
            DataError: the file is empty, not in its encoding, damaged, lacks a column, …
        """
        with self.file.stream() as read:
            blocks = text_blocks(
                self.file,
                read,
                encoding=self._options.encoding,
                delimiter=ord(self._delimiter),
                quoting=self._quoting,
                whitespace=self._whitespace,
                largest_row=self._options.largest_row,
            )
            first = True
            for block in blocks:
                check_utf8(self.file, block.data, block.first_line)
                skip = 0
                if first:
                    if not len(block.scan.starts()):
                        continue  # blank lines only
                    skip = self._begin(block)
                    first = False
                yield self._read(block, skip)
        if first:
            raise DataError(
                finding(
                    "D131", "", place=Place(file=self.file.name), expected="rows", received="an empty file"
                )
            )

    def _begin(self, block: TextBlock) -> int:
        """Read the header, or count the cells of the first row; returns how many rows that took."""
        if self._options.header:
            names = self._header(block)
        else:
            names = [str(i) for i in range(int(block.scan.widths()[0]))]
        self._width = len(names)
        self.columns = locate(self.file.name, self._schema, self._mapping, names, named=self._options.header)
        return int(self._options.header)

    def _header(self, block: TextBlock) -> list[str]:
        row = block.scan.text(0)
        lines = io.StringIO(row.decode("utf-8"), newline="")
        try:
            if self._quoting:
                return next(python_csv.reader(lines, delimiter=self._delimiter))
            plain = python_csv.reader(lines, delimiter=self._delimiter, quoting=python_csv.QUOTE_NONE)
            return next(plain)
        except python_csv.Error as error:
            raise self.file.damaged("a header of column names", error) from None

    def _read(self, block: TextBlock, skip: int) -> Block:
        data = block.data
        if skip:
            starts = block.scan.starts()
            data = data[starts[skip] :] if len(starts) > skip else data[:0]
        if bytes(data[:1]) in (b"", b"\r", b"\n") and not bytes(data).strip(b"\r\n"):
            return Block(0, {}, block.first_line)
        parser = _BlockParser(self, data, block)
        table, wrong = parser.table()
        lines, findings = self._lines(block, skip, table.num_rows, wrong)
        columns: dict[str, Cells] = {}
        for name, where in self.columns.located.items():
            columns[name] = parser.cells(table, self._schema[name], f"c{where.position}")
        return Block(table.num_rows, columns, lines, findings, wrong)

    def _lines(
        self, block: TextBlock, skip: int, rows: int, wrong: int
    ) -> tuple[int | np.ndarray, list[Finding]]:
        """The line of each row, or only the first where every line is a row; and the rows left out."""
        scan = block.scan
        if not skip and not wrong and rows == scan.n_lines:
            return block.first_line, []
        findings: list[Finding] = []
        lines = block.first_line + scan.lines()[skip:]
        if wrong:
            widths = scan.widths()
            odd = np.flatnonzero(widths[skip:] != self._width)
            findings = self._refused(lines[odd], widths[skip:][odd])
            lines = np.delete(lines, odd)
        if len(lines) != rows:
            raise RuntimeError(
                f"castiron found {len(lines)} rows where pyarrow found {rows}, in {self.file.name} from line "
                f"{block.first_line}. Please report this, with the lines."
            )
        regular = rows and lines[-1] - lines[0] == rows - 1
        return (int(lines[0]) if regular else lines), findings

    def _refused(self, lines: np.ndarray, widths: np.ndarray) -> list[Finding]:
        dropped = self._schema.bad_rows == "drop"
        return [
            finding(
                "D123",
                "",
                place=Place(file=self.file.name, line=int(line)),
                expected=f"{self._width} cells",
                received=f"{width} cell{'s' if width != 1 else ''}",
                severity="info" if dropped else "error",
            )
            for line, width in zip(lines.tolist(), widths.tolist(), strict=True)
        ]

    def _parse(
        self,
        data: memoryview,
        types: Mapping[str, pa.DataType],
        wrong: list[int],
        *,
        breaks_in_cells: bool = True,
        inside: int = _INSIDE,
        threads: bool = True,
    ) -> pa.Table:
        """One call of pyarrow's reader. Columns are c0, c1, …; those not in `types` are not made."""

        def on_wrong_width(row: csv.InvalidRow) -> str:
            wrong.append(1)
            return "skip"

        names = [f"c{i}" for i in range(self._width)]
        try:
            return csv.read_csv(
                pa.BufferReader(pa.py_buffer(data)),
                read_options=csv.ReadOptions(block_size=inside, column_names=names, use_threads=threads),
                parse_options=csv.ParseOptions(
                    delimiter=self._delimiter,
                    quote_char='"' if self._quoting else False,
                    double_quote=True,
                    newlines_in_values=self._quoting and breaks_in_cells,
                    ignore_empty_lines=True,
                    invalid_row_handler=on_wrong_width,
                ),
                convert_options=csv.ConvertOptions(
                    column_types=dict(types),
                    include_columns=list(types),
                    null_values=self._nulls,
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid as error:
            if "straddling" in str(error) and inside < len(data):
                wrong.clear()
                return self._parse(data, types, wrong, breaks_in_cells=breaks_in_cells, inside=len(data) + 1)
            raise
        except pa.ArrowException as error:
            # Seen once in thousands of reads on a busy machine: Arrow's threads lost a piece of a column.
            if threads and "unknown reason" in str(error):
                wrong.clear()
                return self._parse(
                    data, types, wrong, breaks_in_cells=breaks_in_cells, inside=inside, threads=False
                )
            raise


class _BlockParser:
    """One block, parsed as numbers where that succeeds, and again as text where it does not."""

    def __init__(self, source: DelimitedSource, data: memoryview, block: TextBlock) -> None:
        self._source = source
        self._data = data
        self._block = block
        self._texts: dict[str, pa.ChunkedArray] = {}

    def table(self) -> tuple[pa.Table, int]:
        """The columns, and the number of rows left out for their width."""
        source = self._source
        types: dict[str, pa.DataType] = {}
        for name, where in source.columns.located.items():
            part = source._schema[name]
            fast = _wants_numbers(part) and source._strikes.get(name, 0) < _STRIKES
            column, kind = f"c{where.position}", _number_type(part) if fast else pa.string()
            # Two fields that read one column as different things both read its text.
            types[column] = kind if types.get(column, kind) == kind else pa.string()
        if any(part.dtype != "bool" and _is_integer(part) for part in source._schema.fields):
            self._refuse_hexadecimal(types)
        names = {f"c{where.position}": name for name, where in source.columns.located.items()}
        numbers = {c for c, kind in types.items() if kind != pa.string()}
        while True:
            wrong: list[int] = []
            try:
                table = self._parse(types, wrong)
            except pa.ArrowInvalid as error:
                match = _CONVERSION.match(str(error))
                column = f"c{match.group(1)}" if match else ""
                if types.get(column, pa.string()) == pa.string():
                    raise source.file.damaged("rows of cells", error) from None
                types[column] = pa.string()
                continue
            for column in numbers:
                failed = types[column] == pa.string()
                source._strikes[names[column]] = source._strikes.get(names[column], 0) + 1 if failed else 0
            return table, len(wrong)

    def _parse(self, types: Mapping[str, pa.DataType], wrong: list[int]) -> pa.Table:
        breaks = self._block.scan.breaks_in_cells
        return self._source._parse(self._data, types, wrong, breaks_in_cells=breaks)

    def _refuse_hexadecimal(self, types: dict[str, pa.DataType]) -> None:
        """pyarrow reads '0x10' as the integer 16; such a block is read as text."""
        if self._block.holds(b"0x") or self._block.holds(b"0X"):
            for column, kind in types.items():
                if pa.types.is_integer(kind):
                    types[column] = pa.string()

    def cells(self, table: pa.Table, part: Field, column: str) -> Cells:
        values = table.column(column)
        if values.type == pa.string():
            return Texts(_one(values), "text")
        if values.null_count and set(self._source._spellings[part.name]) != self._all_spellings():
            return Texts(_one(self._as_text(column)), "text")
        return numbers_of(
            _one(values),
            "text",
            as_text=partial(self._cells_as_text, column),
            may_underflow=lambda: self._block.may_underflow,
        )

    def _all_spellings(self) -> set[str]:
        return {s.strip(" \t") for s in self._source._nulls}

    def _cells_as_text(self, column: str) -> Texts:
        return Texts(_one(self._as_text(column)), "text")

    def _as_text(self, column: str) -> pa.ChunkedArray:
        if column not in self._texts:
            self._texts[column] = self._parse({column: pa.string()}, []).column(column)
        return self._texts[column]


def numbers_of(values: pa.Array, source: str, **more: object) -> Numbers:
    """A pyarrow array of numbers as NumPy, nulls as a mask (and 0 in their place)."""
    missing = None
    if values.null_count:
        missing = values.is_null().to_numpy(zero_copy_only=False)
        values = pc.fill_null(values, False if pa.types.is_boolean(values.type) else 0)
    plain = not pa.types.is_boolean(values.type)
    return Numbers(values.to_numpy(zero_copy_only=plain), missing, source, **more)  # type: ignore[arg-type]


def _one(values: pa.ChunkedArray) -> pa.Array:
    joined = values.combine_chunks()
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def _is_integer(part: Field) -> bool:
    return part.dtype is not None and number_format(part.dtype).is_integer


def _wants_numbers(part: Field) -> bool:
    """Fields that pyarrow may parse; text, labels and booleans are read from their spelling."""
    return not part.is_text and part.categories is None and part.dtype != "bool"


def _number_type(part: Field) -> pa.DataType:
    if not _is_integer(part):
        return pa.float64()
    return pa.uint64() if part.dtype == "uint64" else pa.int64()
