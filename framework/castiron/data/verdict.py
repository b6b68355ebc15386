"""From all that was counted to the findings that a person reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from castiron.data.columns import Problems, Tally
from castiron.data.missing import FittedMissing
from castiron.data.place import CellPlace, RowPlace
from castiron.data.report import BadCell, ColumnReport, DataReport
from castiron.data.schema import Field, Schema
from castiron.diagnostics import DataError, Finding, Place, finding
from castiron.formats import number_format
from castiron.policy.sections import CastSection

SHOWN = 20
"""Refused cells that get a finding of their own."""


class ContractError(DataError):
    """Data that breaks its contract. `report` holds the counts of every column, and every refused cell."""

    def __init__(self, findings: Finding | Iterable[Finding], report: DataReport | None = None) -> None:
        super().__init__(findings)
        self.report = report or DataReport()

    def __reduce__(self) -> Any:
        return type(self), (self.findings, self.report)


def findings_of_rows(found: Sequence[Finding]) -> list[Finding]:
    """Whole rows that are wrong: the first SHOWN one by one, the rest as one finding per code."""
    refused = [f for f in found if f.severity == "error"]
    result = refused[:SHOWN]
    for rest, said in ((refused[SHOWN:], "There are more rows like these"), (_others(found), "")):
        for code in sorted({f.code for f in rest}):
            same = [f for f in rest if f.code == code]
            first = same[0]
            result.append(
                finding(
                    code,
                    said or "The row is left out, as declared",
                    place=first.place,
                    expected=first.expected,
                    received=first.received,
                    remedy="" if first.severity == "info" else None,
                    severity=first.severity,
                    count=len(same),
                )
            )
    return result


def _others(found: Sequence[Finding]) -> list[Finding]:
    return [f for f in found if f.severity != "error"]


def findings_of_cells(
    problems: Problems, schema: Schema, units: Mapping[str, str], fitted: FittedMissing
) -> list[Finding]:
    """The first SHOWN refused cells one by one; of the rest, and of what was treated, one finding a kind."""
    shown = problems.cells[:SHOWN]
    result = [_of_cell(cell, units) for cell in shown]
    for (name, code, consequence), tally in problems.tallies.items():
        if consequence == "refused":
            left = tally.count - sum(c.field == name and c.code == code for c in shown)
            if left:
                first = next(
                    (c for c in problems.cells[SHOWN:] if (c.field, c.code) == (name, code)), tally.first
                )
                result.append(_summary(tally, left, first, f"Field '{name}' has more cells like this", units))
        else:
            said = _consequence(schema[name], tally, fitted)
            result.append(_summary(tally, tally.count, tally.first, said, units))
    return result


def _of_cell(cell: BadCell, units: Mapping[str, str]) -> Finding:
    return finding(
        cell.code,
        cell.message,
        place=_place(cell, units),
        expected=cell.expected,
        received=cell.received,
        severity="error",
    )


def _place(cell: BadCell, units: Mapping[str, str]) -> Place:
    kind = RowPlace if units.get(cell.file) == "row" else CellPlace
    return kind(file=cell.file, line=cell.line, column=cell.column, field=cell.field)


def _summary(tally: Tally, count: int, first: BadCell | None, said: str, units: Mapping[str, str]) -> Finding:
    refused = tally.consequence == "refused"
    return finding(
        tally.code,
        said,
        place=_place(first, units) if first else None,
        expected=first.expected if first else None,
        received=f"{first.received}, first" if first and count > 1 else first.received if first else None,
        remedy=None if refused or tally.severity == "warning" else "",
        severity="error" if refused else tally.severity,  # type: ignore[arg-type]
        count=count,
        consequence=tally.consequence,
    )


def _consequence(part: Field, tally: Tally, fitted: FittedMissing) -> str:
    """What was done to cells that are odd, but not refused."""
    what = "missing value" if tally.code in ("D102", "D124") else "cell"
    if tally.consequence == "dropped" and tally.code == "D124":
        return f"A row without field '{part.name}' is left out, as declared"
    if tally.consequence == "dropped":
        return f"The row of a {what} of field '{part.name}' is left out, as declared"
    if tally.consequence == "kept" and tally.code == "D102":
        return f"A missing value of '{part.name}' is NaN, as the policy allows (casts.missing: report)"
    if tally.consequence == "kept":
        return f"A cast of field '{part.name}' is lossy, as the policy allows (casts.lossy: report)"
    treatment = part.missing.treatment
    if treatment == "constant":
        put = f"the constant {part.missing.value!r}"
    elif treatment in ("mean", "median") and part.name in fitted.values:
        put = f"the {treatment} of the training data, {fitted.values[part.name].value:.6g}"
    else:
        put = {"drop": "left out with its row"}.get(treatment, "NaN")
    return f"A {what} of field '{part.name}' becomes {put}, as declared"


def findings_of_columns(columns: Sequence[ColumnReport], casts: CastSection) -> list[Finding]:
    """What is said of whole columns: float64 sources, subnormals, numbers written as text."""
    result = []
    wide = [c for c in columns if _from_float64(c)]
    if wide and casts.float64_source != "ignore":
        result.append(_float64_sources(wide, casts))
    for column in columns:
        place = CellPlace(field=column.field)
        if column.subnormal and casts.rounding != "ignore":
            result.append(
                finding(
                    "D112",
                    f"Field '{column.field}' has values among the subnormals of {column.target_dtype}; they "
                    f"are rounded by up to {column.largest_relative_error:.2g} of their size",
                    place=place,
                    count=column.subnormal,
                )
            )
        if column.written_as_text:
            result.append(
                finding(
                    "D119",
                    f"Field '{column.field}' has numbers that the file stores as text; they are read exactly",
                    place=place,
                    count=column.written_as_text,
                )
            )
    return result


def _float64_sources(columns: Sequence[ColumnReport], casts: CastSection) -> Finding:
    names = ", ".join(f"'{c.field}'" for c in columns[:8]) + (", …" if len(columns) > 8 else "")
    targets = ", ".join(dict.fromkeys(c.target_dtype for c in columns))
    error = max(c.largest_relative_error for c in columns)
    rounded, values = sum(c.rounded for c in columns), sum(c.values for c in columns)
    told = (
        f"{rounded:,} of {values:,} values are rounded, by {error:.2g} at most"
        if rounded
        else "no value changes"
    )
    return finding(
        "D111",
        f"The files store field{'s' if len(columns) > 1 else ''} {names} as float64; {told}",
        expected=targets,
        received="float64",
        severity="error" if casts.float64_source == "error" else "info",
    )


def _from_float64(column: ColumnReport) -> bool:
    if column.role == "text" or not {"double", "float64"} & set(column.source_dtype.split(", ")):
        return False
    form = number_format(column.target_dtype.split(" ")[0])
    return form.is_float and form.name != "float64"
