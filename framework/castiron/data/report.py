"""The data report: what was read, what every cast did, and what was found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from castiron.data.place import CellPlace, RowPlace
from castiron.diagnostics import Finding, Place

HEADINGS = (
    "field", "source", "target", "rows", "exact", "rounded", "lossy", "largest error", "missing", "bad",
    "range",
)  # fmt: skip
"""Headings of `DataReport.as_table_rows`."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings")


class FileReport(_Part):
    """One file that was read."""

    file: str
    """Path as it was given."""
    rows: int = 0
    """Data rows in the file, before any is left out."""
    bytes: int = 0
    """Size on disk."""
    blake3: str = ""
    """Digest of the bytes on disk; empty if it was not wanted."""


class ColumnReport(_Part):
    """One field, over all files of a split. exact + rounded + lossy + bad + missing = values."""

    field: str
    """Name of the field."""
    role: str = "feature"
    """Role of the field."""
    column: str = ""
    """Column it was read from."""
    source_dtype: str = ""
    """What the files hold: text, int64, double, …"""
    target_dtype: str = ""
    """What the model gets."""
    rows: int = 0
    """Rows read."""
    values: int = 0
    """Values judged: rows times the size of the shape."""
    exact: int = 0
    """Values the cast did not change."""
    rounded: int = 0
    """Values rounded to the nearest of the target format. Decimal text counts by its nearest float64."""
    lossy: int = 0
    """Values that lost what they were: overflow, underflow to zero, integers that changed, …"""
    subnormal: int = 0
    """Of the rounded: those that fell among the target's subnormals, where fewer digits are kept."""
    bad: int = 0
    """Cells that are no value of this field: text that is no number, unknown categories, out of range."""
    largest_relative_error: float = 0.0
    """Of the rounded: largest |cast - value| / |value|."""
    missing: int = 0
    """Missing values."""
    treated: int = 0
    """Missing (and bad, where declared) values that were replaced."""
    treatment: str = "error"
    """What was declared for missing values."""
    written_as_text: int = 0
    """Numbers that are text in a format that has numbers (JSON, Parquet, npz)."""
    minimum: float | int | None = None
    """Smallest value read, after the cast."""
    maximum: float | int | None = None
    """Largest value read, after the cast."""


class BadCell(_Part):
    """One cell that breaks the contract."""

    code: str
    """Code in the catalogue."""
    field: str
    """Field it was read for."""
    file: str
    """File it is in."""
    line: int | None = None
    """Line of the row, from 1; in files without lines, its row."""
    column: int | None = None
    """Which cell of the row it is, from 1, where rows have cells in order."""
    received: str = ""
    """What stands there."""
    expected: str = ""
    """What should."""
    message: str = ""
    """What the cast would do to it."""


class DataReport(_Part):
    """What `castiron data check` prints, and `data.json` of a run holds."""

    split: str = "train"
    """Split of the data: train, validation, test, …"""
    rows: int = 0
    """Rows that are left."""
    rows_read: int = 0
    """Rows in the files."""
    dropped: int = 0
    """Rows left out, as declared."""
    files: list[FileReport] = []
    """Files, in the order in which they were read."""
    columns: list[ColumnReport] = []
    """One entry per field."""
    extra_columns: list[str] = []
    """Columns of the files that no field reads."""
    findings: list[dict[str, Any]] = []
    """Every finding, as `Finding.as_dict()` gives it."""
    bad_cells: list[BadCell] = []
    """The cells that were refused, one by one (at most 100,000 of them)."""
    bad_cells_total: int = 0
    """How many were refused in all."""

    @property
    def is_sound(self) -> bool:
        """Whether nothing was refused."""
        return not any(f["severity"] == "error" for f in self.findings)

    def as_table_rows(self) -> list[tuple[str, ...]]:
        """A row of text per field, under `HEADINGS`."""
        return [tuple(_row(column)) for column in self.columns]

    def as_text(self) -> str:
        """Plain lines: files, table, findings."""
        table = [HEADINGS, *self.as_table_rows()]
        widths = [max(len(row[i]) for row in table) for i in range(len(HEADINGS))]
        lines = [self._summary(), *(f"  {line}" for line in self._file_lines()), ""]
        for row in table:
            cells = (
                c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            )
            lines.append("  ".join(cells).rstrip())
        for found in self._finding_lines():
            lines += ["", found]
        return "\n".join(lines)

    def as_markdown(self) -> str:
        """The same for TensorBoard's text page."""
        lines = [f"**{self._summary()}**", "", *(f"- {line}" for line in self._file_lines()), ""]
        lines.append("| " + " | ".join(HEADINGS) + " |")
        lines.append("|" + " --- |" * 3 + " ---: |" * (len(HEADINGS) - 3))
        lines += [
            "| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in self.as_table_rows()
        ]
        lines += ["", *(f"- {found}" for found in self._finding_lines())]
        return "\n".join(lines).rstrip() + "\n"

    def _summary(self) -> str:
        text = f"{self.split}: {self.rows:,} rows"
        if self.dropped:
            text += f" ({self.rows_read:,} read, {self.dropped:,} left out as declared)"
        if self.bad_cells_total:
            text += f", {self.bad_cells_total:,} cells refused"
        if self.extra_columns:
            text += f"; {len(self.extra_columns)} columns unused"
        return text

    def _file_lines(self) -> Iterator[str]:
        for file in self.files:
            digest = f", blake3 {file.blake3[:12]}…" if file.blake3 else ""
            yield f"{file.file}: {file.rows:,} rows, {file.bytes:,} bytes{digest}"

    def as_findings(self) -> list[Finding]:
        """The findings as they were."""
        return [_finding(record) for record in self.findings]

    def _finding_lines(self) -> Iterator[str]:
        for found in self.as_findings():
            yield f"{found.severity} {found.code}: {found.sentence()}"

    def save(self, path: str | Path) -> None:
        """Write the report as JSON."""
        Path(path).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> DataReport:
        """Read a report that `save` wrote."""
        return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))


def _finding(record: dict[str, Any]) -> Finding:
    place = record["place"]
    kind: type[Place] = Place
    if place.get("field"):
        whole_rows = str(place.get("file", "")).removesuffix(".gz").endswith((".parquet", ".pq", ".npz"))
        kind = RowPlace if whole_rows else CellPlace
    return Finding(**{**record, "place": kind(**place)})


def _row(column: ColumnReport) -> Iterator[str]:
    yield column.field
    yield column.source_dtype or "-"
    yield column.target_dtype
    yield f"{column.rows:,}"
    if column.role == "text":
        yield from ("-", "-", "-", "-")
    else:
        yield f"{column.exact:,}"
        yield f"{column.rounded:,}"
        yield f"{column.lossy:,}"
        yield f"{column.largest_relative_error:.2g}" if column.rounded else "0"
    yield f"{column.missing:,} ({column.treatment})" if column.missing else "0"
    yield f"{column.bad:,}"
    if column.minimum is None or column.maximum is None:
        yield "-"
    else:
        yield f"{column.minimum:.6g} … {column.maximum:.6g}"
