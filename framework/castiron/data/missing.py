"""Values that stand in for missing ones, fitted on training data only and saved with the run."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from castiron.data.files import odd_kind, written_atomically
from castiron.diagnostics import DataError, Place, finding


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
        """Write the values as JSON, whole or not at all."""
        with written_atomically(path) as file:
            file.write(self.model_dump_json(indent=2).encode() + b"\n")

    @classmethod
    def load(cls, path: str | Path) -> FittedMissing:
        """What `save` wrote.

        Raises:
            DataError: the file is missing or damaged (X822).
        """
        try:
            if kind := odd_kind(Path(path)):
                raise OSError(errno.EINVAL, f"it is a {kind}")
            return cls.model_validate_json(Path(path).read_bytes())
        except (OSError, ValueError) as e:
            reason = (e.strerror or str(e)) if isinstance(e, OSError) else "it is not what was written"
            message = f"The values that stand in for missing ones cannot be read: {reason}."
            raise DataError(finding("X822", message, place=Place(file=str(path)))) from None
