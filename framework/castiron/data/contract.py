"""The contract kept: files in, columns of declared format out, everything counted on the way."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from castiron.data.cells import Judged
from castiron.data.columns import ColumnBuilder, Problems
from castiron.data.missing import FittedMissing
from castiron.data.options import ReadOptions
from castiron.data.origin import LineIndex, Origins
from castiron.data.readers import open_source, spellings_of
from castiron.data.readers.ahead import ahead, side_by_side
from castiron.data.readers.files import find_files
from castiron.data.readers.source import Block, Cells, Source
from castiron.data.report import DataReport, FileReport
from castiron.data.schema import Column, Schema
from castiron.data.table import Dataset
from castiron.data.verdict import ContractError, findings_of_cells, findings_of_columns, findings_of_rows
from castiron.diagnostics import DataError, Finding, Place, finding
from castiron.policy.sections import CastSection

Paths = str | Path | Sequence[str | Path]
Mapped = Mapping[str, Column | Sequence[Column]]


def load(
    paths: Paths,
    schema: Schema,
    *,
    columns: Mapped | None = None,
    options: ReadOptions | None = None,
    casts: CastSection | None = None,
    fitted: FittedMissing | None = None,
    split: str = "train",
) -> Dataset:
    """Read files into a data set that keeps its contract.

    A number in text is read to its nearest float64 and judged from there; an integer in text is judged as
    it is written. Blank lines are no rows.

    Args:
        paths: files and globs, read in this order.
        schema: the fields.
        columns: field name to the column it is read from, or to alternatives of which each file must have
            one; overrides the schema.
        options: how the files are read, where their suffix does not say.
        casts: what rounded and lossy casts, float64 sources and missing values do; a policy's `casts`.
        fitted: statistics of the training data, from its data set; needed by the other splits where a
            field has missing: mean or median.
        split: name in the report. Only `train` may fit statistics.

    Raises:
        ContractError: with a finding for each of the first 20 cells that are refused, one for the rest of
            each kind, and the whole report.
    """
    return _Load(paths, schema, columns, options, casts, fitted, split).whole()


def load_batches(
    paths: Paths,
    schema: Schema,
    *,
    columns: Mapped | None = None,
    options: ReadOptions | None = None,
    casts: CastSection | None = None,
    fitted: FittedMissing | None = None,
    split: str = "train",
) -> Iterator[Dataset]:
    """Like `load`, but block by block, for files larger than memory.

    Blocks are of a size that suits the file format, and of complete rows. Statistics for missing values
    cannot be fitted on the way: `fitted` is needed where a field asks for one. The `report` of a block is
    that of all blocks so far; its digests are there once the file is read to its end.

    Raises:
        ContractError: at the end of the first block in which something is refused.
    """
    yield from _Load(paths, schema, columns, options, casts, fitted, split).pieces()


def check(
    paths: Paths,
    schema: Schema,
    *,
    columns: Mapped | None = None,
    options: ReadOptions | None = None,
    casts: CastSection | None = None,
    fitted: FittedMissing | None = None,
    split: str = "train",
) -> DataReport:
    """The report of a load, also of one that is refused; no values are kept, so memory stays small.

    A statistic of the training data is not needed: gaps are counted, not filled.
    """
    run = _Load(paths, schema, columns, options, casts, fitted, split, keep=False)
    try:
        return run.whole().report
    except ContractError as error:
        return error.report


class _Load:
    """One pass over the files of a split."""

    def __init__(
        self,
        paths: Paths,
        schema: Schema,
        columns: Mapped | None,
        options: ReadOptions | None,
        casts: CastSection | None,
        fitted: FittedMissing | None,
        split: str,
        *,
        keep: bool = True,
    ) -> None:
        self._paths = [paths] if isinstance(paths, str | Path) else list(paths)
        self._schema = schema
        self._mapping = {name: _alternatives(c) for name, c in (columns or {}).items()}
        self._options = options or ReadOptions()
        self._casts = casts or CastSection()
        self._fitted = fitted
        self._keep = keep
        self._problems = Problems()
        self._row_findings: list[Finding] = []
        self._fatal: list[Finding] = []
        self._units: dict[str, str] = {}
        self._indices: list[LineIndex] = []
        self._kept: list[tuple[int, int, np.ndarray | None]] = []
        self._rows_read = 0
        self._skipped = 0
        self._report = DataReport(split=split)
        self._builders = self._new_builders()
        self._present: set[str] | None = None
        self._refuse_unknown_fields()

    def _new_builders(self) -> dict[str, ColumnBuilder]:
        keep, fitted = self._keep, self._fitted
        return {f.name: ColumnBuilder(f, self._casts, fitted, keep=keep) for f in self._schema.fields}

    def _refuse_unknown_fields(self) -> None:
        if unknown := sorted(set(self._mapping) - set(self._schema.names)):
            names = ", ".join(map(repr, unknown))
            raise ContractError(
                finding(
                    "D120",
                    "",
                    expected=f"fields of the schema ({', '.join(self._schema.names)}) in data.columns",
                    received=names,
                    remedy="Write data.columns as {field: column}.",
                )
            )

    def whole(self) -> Dataset:
        if self._keep and (self._report.split != "train" or self._fitted is not None):
            self._need_fitted()
        try:
            for _ in self._blocks():
                pass
        except DataError as error:
            self._fatal += error.findings
        columns: dict[str, np.ndarray | pa.ChunkedArray] = {}
        fitted = dict(self._fitted.values) if self._fitted else {}
        for name in self._schema.names:
            if self._present is not None and name not in self._present:
                continue
            try:
                columns[name], statistic = self._builders[name].finish()
            except LookupError:
                self._fatal.append(self._nothing_to_fit(name))
                continue
            if statistic is not None:
                fitted[name] = statistic
        statistics = FittedMissing(values=fitted)
        self._conclude(statistics)
        if not self._keep:
            empty: dict[str, np.ndarray | pa.ChunkedArray] = {}
            return Dataset(self._schema, empty, origins=Origins([]), report=self._report)
        kept = self._kept_rows()
        origins = Origins(self._indices, kept)
        return Dataset(self._schema, columns, origins=origins, report=self._report, fitted=statistics)

    def pieces(self) -> Iterator[Dataset]:
        self._need_fitted()
        blocks = self._blocks()
        while True:
            try:
                rows = next(blocks, None)
            except DataError as error:
                self._fatal += error.findings
                rows = None
            if rows is None or self._problems.total or any(f.severity == "error" for f in self._row_findings):
                break
            columns = {}
            for name in self._present or ():
                columns[name], _ = self._builders[name].finish()
            start, count, keep = self._kept[-1]
            kept = start + (np.arange(count) if keep is None else np.flatnonzero(keep))
            report = self._report.model_copy(update={"rows": self._rows_left(), "rows_read": self._rows_read})
            origins = Origins(self._indices, kept)
            if len(kept):
                yield Dataset(self._schema, columns, origins=origins, report=report, fitted=self._fitted)
        blocks.close()
        self._conclude(self._fitted or FittedMissing())

    def _need_fitted(self) -> None:
        """Refuse to fit statistics on anything but the training data."""
        have = self._fitted.values if self._fitted else {}
        lacking = [
            f for f in self._schema.fields if f.missing.treatment in ("mean", "median") and f.name not in have
        ]
        if lacking:
            raise ContractError(
                finding(
                    "D141",
                    "",
                    expected=f"the {f.missing.treatment} of field '{f.name}', fitted on the training data",
                    received=f"none, for the {self._report.split} data",
                    place=Place(field=f.name),
                )
                for f in lacking
            )

    def _blocks(self) -> Generator[int, None, None]:
        """Read, judge and take over block after block; yields the rows kept of each."""
        for path in find_files(self._paths):
            source = open_source(path, self._schema, self._options, self._mapping)
            index = LineIndex(source.file.name)
            self._indices.append(index)
            self._units[source.file.name] = source.unit
            skipped = 0
            try:
                blocks = source.blocks()
                for block in blocks if source.reads_ahead else ahead(blocks):
                    skipped += block.skipped
                    self._row_findings += block.findings
                    kept = self._take(block, source, index)
                    if block.rows:
                        yield kept
            except DataError as error:
                self._fatal += error.findings
            else:
                if not index.rows and not skipped:
                    self._fatal.append(self._no_rows(source))
            self._skipped += skipped
            for file in (source.file, *source.beside):
                self._report.files.append(
                    FileReport(file=file.name, rows=index.rows + skipped, bytes=file.size, blake3=file.digest)
                )

    def _take(self, block: Block, source: Source, index: LineIndex) -> int:
        if index.rows == 0:
            self._same_fields(source)
            if source.rows is not None:
                for builder in self._builders.values():
                    builder.reserve(source.rows)
        lines = block.lines
        where = source.columns.located

        def cell(row: int, name: str) -> tuple[str, int | None, int | None]:
            line = lines + row if isinstance(lines, int) else int(lines[row])
            position = where[name].position if source.has_cells else None
            return source.file.name, line, None if position is None else position + 1

        drop: np.ndarray | None = None
        told = len(self._problems.cells)
        for name, cells, judged in self._judged(block, text_file=source.has_cells):
            builder = self._builders[name]
            odd = builder.take(cells, judged, self._problems, cell)
            builder.report.column = where[name].label
            if odd is not None:
                drop = odd if drop is None else drop | odd
        self._problems.sort_from(told)
        keep = None if drop is None else ~drop
        for name in block.columns:
            self._builders[name].commit(keep)
        index.add(block.rows, block.lines)
        self._kept.append((self._rows_read, block.rows, keep))
        self._rows_read += block.rows
        return block.rows if keep is None else int(np.count_nonzero(keep))

    def _judged(self, block: Block, *, text_file: bool) -> Iterator[tuple[str, Cells, Judged]]:
        """Field by field; where columns are still to be read, several at a time."""

        def look(name: str) -> tuple[str, Cells, Judged]:
            builder, cells = self._builders[name], block.columns[name]
            if callable(cells):
                cells = cells()
            spellings = spellings_of(builder.part, self._options, text_file=text_file)
            return name, cells, builder.look(cells, spellings)

        threads = min(len(block.columns), pa.cpu_count())
        if threads > 1 and any(map(callable, block.columns.values())):
            return side_by_side(look, block.columns, threads)
        return map(look, block.columns)

    def _same_fields(self, source: Source) -> None:
        """An optional field is in all files or in none."""
        found = set(source.columns.located)
        self._report.extra_columns = list(dict.fromkeys((*self._report.extra_columns, *source.columns.extra)))
        if self._present is None:
            self._present = found
        elif odd := sorted(self._present ^ found):
            raise DataError(
                finding(
                    "D120",
                    "",
                    place=Place(file=source.file.name),
                    expected="the same fields in every file",
                    received=f"{'no ' if odd[0] in self._present else ''}field {', '.join(map(repr, odd))}",
                )
            )

    def _no_rows(self, source: Source) -> Finding:
        return finding(
            "D132",
            "",
            place=Place(file=source.file.name),
            expected="at least one row",
            received="a header only" if source.has_cells and self._options.header else "no rows",
            remedy=None if source.has_cells else "Write the file again, or leave it out.",
        )

    def _rows_left(self) -> int:
        return sum(rows if keep is None else int(np.count_nonzero(keep)) for _, rows, keep in self._kept)

    def _kept_rows(self) -> np.ndarray | None:
        if all(keep is None for _, _, keep in self._kept):
            return None
        return np.concatenate(
            [
                start + (np.arange(n) if keep is None else np.flatnonzero(keep))
                for start, n, keep in self._kept
            ]
        )

    def _nothing_to_fit(self, name: str) -> Finding:
        part = self._schema[name]
        return finding(
            "D142",
            "",
            expected=f"values of field '{name}' to take the {part.missing.treatment} of",
            received="missing values only",
            place=Place(field=name),
        )

    def _conclude(self, fitted: FittedMissing) -> None:
        """Complete the report.

        Raises:
            ContractError: something is refused.
        """
        report = self._report
        report.columns = [
            b.report for n, b in self._builders.items() if self._present is None or n in self._present
        ]
        report.rows = self._rows_left()
        report.rows_read = self._rows_read + self._skipped
        report.dropped = report.rows_read - report.rows
        findings = [
            *self._fatal,
            *findings_of_rows(self._row_findings),
            *findings_of_cells(self._problems, self._schema, self._units, fitted),
            *findings_of_columns(report.columns, self._casts),
        ]
        refused = [f for f in findings if f.severity == "error"]
        if not refused and not report.rows and self._keep:
            refused = [
                finding(
                    "D143",
                    "",
                    expected="at least one row that keeps the contract",
                    received=f"none of {report.rows_read:,}",
                )
            ]
            findings += refused
        report.findings = [f.as_dict() for f in findings]
        report.bad_cells = self._problems.cells
        report.bad_cells_total = self._problems.total
        if refused:
            raise ContractError(refused, report)


def _alternatives(columns: Column | Sequence[Column]) -> tuple[Column, ...]:
    return (columns,) if isinstance(columns, str | int) else tuple(columns)
