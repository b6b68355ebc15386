"""The data report: what was read, what every cast did, and what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class FileReport(_Part):
    """One file that was read."""

    file: str
    """Path as it was given."""
    rows: int = 0
    """Data rows in the file, before any is left out."""
    bytes: int = 0
    """Size on disk."""
    sha256: str = ""
    """Digest of the bytes on disk."""


class ColumnReport(_Part):
    """One field, over all files of a split."""

    field: str
    """Name of the field."""
    role: str = "feature"
    column: str = ""
    """Column it was read from."""
    source_dtype: str = ""
    """What the files hold: text, int64, float64, …"""
    target_dtype: str = ""
    """What the model gets."""
    rows: int = 0
    """Rows read; values are rows times the size of the shape."""
    values: int = 0
    """Values judged: exact + rounded + lossy + missing + bad."""
    exact: int = 0
    """Values the cast did not change."""
    rounded: int = 0
    """Values rounded to the nearest of the target format."""
    lossy: int = 0
    """Values that lost what they were: overflow, underflow to zero, integers that changed, …"""
    subnormal: int = 0
    """Of the rounded: those that fell among the target's subnormals, and lost digits there."""
    bad: int = 0
    """Cells that are no value of this field at all."""
    largest_relative_error: float = 0.0
    """Of the rounded: largest |cast - value| / |value|."""
    missing: int = 0
    """Missing values."""
    treated: int = 0
    """Of the missing (and of the bad, where declared): those that were replaced."""
    treatment: str = "error"
    """What was declared for missing values."""
    minimum: float | int | None = None
    """Smallest value, after the cast."""
    maximum: float | int | None = None
    """Largest value, after the cast."""


class BadCell(_Part):
    """One cell that breaks the contract."""

    code: str
    field: str
    file: str
    line: int | None = None
    column: int | None = None
    value: str = ""
    expected: str = ""
    reason: str = ""


class DataReport(_Part):
    """What `castiron data check` prints, and `data.json` of a run holds."""

    split: str = "train"
    rows: int = 0
    """Rows that are left."""
    rows_read: int = 0
    dropped: int = 0
    """Rows left out, as declared."""
    files: list[FileReport] = []
    columns: list[ColumnReport] = []
    extra_columns: list[str] = []
    """Columns of the files that no field reads."""
    findings: list[dict[str, Any]] = []
    """Every finding, as `Finding.as_dict()`."""
    bad_cells: list[BadCell] = []
    """Every bad cell, up to `bad_cells_listed_at_most`."""
    bad_cells_total: int = 0

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> DataReport:
        return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
