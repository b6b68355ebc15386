"""What every reader hands on: blocks of rows, column by column, with the line of each row."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from castiron.data.options import ReadOptions
from castiron.data.readers.files import DataFile
from castiron.data.schema import Column, Field, Schema
from castiron.diagnostics import DataError, Finding, Place, finding


@dataclass(frozen=True, slots=True)
class BadValue:
    """A cell that a reader already knows to be wrong: its row in the block, code, what was received."""

    row: int
    code: str
    received: str
    expected: str = ""


@dataclass(slots=True)
class Numbers:
    """Cells that are numbers in the file, or that pyarrow read as numbers.

    `values` is [rows, *shape]. `missing` is a mask of the same shape, or None. `as_text` reads the same cells
    again as text: where a number in text may have lost something on the way to float64.
    """

    values: np.ndarray
    missing: np.ndarray | None
    source: str
    as_text: Callable[[], Texts] | None = None
    may_underflow: Callable[[], bool] | None = None
    """Whether a zero among the values may have been a tiny number in the file."""
    bad: Sequence[BadValue] = ()


@dataclass(slots=True)
class Texts:
    """Cells that are text, or that are judged from their text. Nulls are missing.

    `cells` is flat: rows times the size of the shape.
    """

    cells: pa.Array
    source: str
    bad: Sequence[BadValue] = ()
    written_as_text: int = 0
    """Cells that are text in a format that has numbers (JSON, Parquet)."""


Cells = Numbers | Texts


@dataclass(slots=True)
class Block:
    """Some rows of a file."""

    rows: int
    columns: Mapping[str, Cells | Callable[[], Cells]]
    """Cells by field name, or what reads them, in a thread each, before the next block is asked for."""
    lines: int | np.ndarray
    """Line of the first row where every row takes one line; else the line of each row [rows]."""
    findings: list[Finding] = field(default_factory=list)
    """What is wrong with whole rows that are left out here: too many cells, no JSON."""
    skipped: int = 0
    """How many those are."""


@dataclass(frozen=True, slots=True)
class Located:
    """A column of a file that holds a field."""

    label: str
    """Its name in the file, or its position."""
    position: int | None
    """Which cell of a row it is, from 0; None in formats whose rows have no cells in order."""


@dataclass(slots=True)
class FileColumns:
    """Which columns of a file the fields are read from."""

    located: dict[str, Located]
    extra: list[str]
    findings: list[Finding] = field(default_factory=list)


class Source(ABC):
    """A file that is being read."""

    unit: str = "row"
    """What `Block.lines` counts: line or row."""
    has_cells = False
    """Whether rows are made of cells in order, so that a cell has a number (CSV, TSV)."""
    beside: tuple[DataFile, ...] = ()
    """Files that hold other columns of the same rows."""
    rows: int | None = None
    """Rows of the file, where it says so before they are read."""
    reads_ahead = False
    """Whether `blocks` sees to it itself that the next block is read while the last is judged."""

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
        self._prepare()

    def _prepare(self) -> None:  # noqa: B027 - most need nothing
        """What a reader needs before it reads."""

    @abstractmethod
    def blocks(self) -> Iterator[Block]:
        """The rows of the file in order."""


def locate(
    file: str,
    schema: Schema,
    mapping: Mapping[str, tuple[Column, ...]],
    present: Sequence[str],
    *,
    named: bool,
) -> FileColumns:
    """Find the column of every field.

    Args:
        mapping: columns by field, where they are not those of the schema.
        present: the names of the file's columns in order; positions as text where it has no header.
        named: whether `present` are names.

    Raises:
        DataError: a column is missing, named twice, or (schema.strict) not asked for. All are collected.
    """
    findings: list[Finding] = []
    located: dict[str, Located] = {}
    stripped = [name.strip() for name in present]
    for part in schema.fields:
        wanted = mapping.get(part.name, part.columns)
        hits = [hit for column in wanted if (hit := _positions(column, present, stripped, named))]
        if not hits:
            if part.required:
                findings.append(_missing_column(file, part, wanted, present, named))
            continue
        if len(hits[0]) > 1:
            numbers = ", ".join(str(p + 1) for p in hits[0])
            findings.append(
                finding(
                    "D121",
                    "",
                    place=Place(file=file),
                    expected=f"one column {present[hits[0][0]]!r} for field '{part.name}'",
                    received=f"{len(hits[0])} of them (columns {numbers})",
                )
            )
            continue
        position = hits[0][0]
        located[part.name] = Located(present[position] if named else f"column {position + 1}", position)
    used = {where.position for where in located.values()}
    extra = [name if named else f"column {i + 1}" for i, name in enumerate(present) if i not in used]
    if extra and schema.strict:
        findings.append(
            finding(
                "D122",
                "",
                place=Place(file=file),
                expected=f"the columns of the schema only ({', '.join(w.label for w in located.values())})",
                received=_some(extra),
                severity="error",
            )
        )
    if not located and not findings:
        findings = [
            _missing_column(file, p, mapping.get(p.name, p.columns), present, named) for p in schema.fields
        ]
    if findings:
        raise DataError(findings)
    return FileColumns(located, extra)


def _positions(column: Column, present: Sequence[str], stripped: Sequence[str], named: bool) -> list[int]:
    if isinstance(column, int):
        return [column] if 0 <= column < len(present) else []
    if not named:
        return [int(column)] if column.isascii() and column.isdigit() and int(column) < len(present) else []
    exact = [i for i, name in enumerate(present) if name == column]
    return exact or [i for i, name in enumerate(stripped) if name == column.strip()]


def _missing_column(
    file: str, part: Field, wanted: Sequence[Column], present: Sequence[str], named: bool
) -> Finding:
    names = " or ".join(repr(c) if isinstance(c, str) else f"number {c}" for c in wanted)
    remedy = None
    if named:
        lower = {name.strip().lower(): name for name in present}
        near = [lower[n] for c in wanted for n in difflib.get_close_matches(str(c).lower(), lower, n=1)]
        hint = f"Did you mean {near[0]!r}? " if near else ""
        remedy = f"{hint}Name it with `data.columns: {{{part.name}: COLUMN}}`."
        received = f"columns {_some(present)}" if present else "no columns"
    else:
        remedy = (
            f"The file is read without a header: name the position, counted from 0, with "
            f"`data.columns: {{{part.name}: 0}}`."
        )
        received = f"{len(present)} columns without names"
    return finding(
        "D120",
        "",
        place=Place(file=file),
        expected=f"a column {names} for field '{part.name}'",
        received=received,
        remedy=remedy,
    )


def _some(names: Sequence[str], limit: int = 12) -> str:
    shown = ", ".join(repr(n) for n in names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown
