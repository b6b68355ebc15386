"""Values that stand in for missing ones, fitted on training data only and saved with the run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict


class FittedValue(BaseModel):
    """What one field's missing values become."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    statistic: Literal["mean", "median"]
    """Statistic of the training data."""
    value: float
    """Its value, as a float64."""
    rows: int
    """Number of values it was taken over."""


class FittedMissing(BaseModel):
    """The statistics of the training data that fill gaps, by field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    values: dict[str, FittedValue] = {}
    """Fitted value of each field with missing: mean or median."""

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> FittedMissing:
        return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
