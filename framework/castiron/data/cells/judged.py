"""What is found in a block of one field's cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa

from castiron.data.casts import CastResult, Loss

Kind = Literal["bad", "lossy", "rounded", "missing", "absent"]
"""bad: no value of this field; lossy, rounded: a value that the cast changes; missing: none at all; absent:
not even the key is there (JSON)."""

CODE_OF_LOSS: dict[Loss, str] = {
    "overflow": "D103",
    "underflow": "D104",
    "integer": "D105",
    "fraction": "D106",
    "range": "D107",
    "infinite": "D108",
    "nan": "D101",
    "bool": "D115",
    "tolerance": "D109",
}


@dataclass(frozen=True, slots=True)
class Faults:
    """Cells with one thing wrong with them; described only when asked."""

    code: str
    kind: Kind
    at: np.ndarray
    """Positions in the block, flat over rows and shape [k] int64."""
    received: Callable[[int], str]
    """What stands at a position, in words."""
    message: Callable[[int], str] | None = None
    expected: str = ""
    """Other than the field's format; empty: that."""


@dataclass(slots=True)
class Judged:
    """The values of a block in the field's format, and every cell that is not simply one of them."""

    values: np.ndarray | pa.Array
    """[rows, *shape]; where a cell is missing or bad, any value."""
    missing: np.ndarray | None = None
    """Mask of the shape of values, or None."""
    faults: list[Faults] = field(default_factory=list)
    what_is_missing: Callable[[int], str] = lambda _: "a missing value"
    """What stands where a value is missing, by flat position, in words."""
    rounded: int = 0
    subnormal: int = 0
    largest_relative_error: float = 0.0
    lowest: float | int | None = None
    highest: float | int | None = None
    """Range of the values that are neither missing nor bad."""

    def took(self, result: CastResult) -> None:
        """Add the counts of a cast."""
        self.rounded += result.n_rounded
        self.subnormal += result.n_subnormal
        self.largest_relative_error = max(self.largest_relative_error, result.largest_relative_error)


def shown(text: str, limit: int = 60) -> str:
    """A cell in quotes, cut to a length that a terminal bears."""
    return repr(text if len(text) <= limit else f"{text[: limit - 1]}…")


def bounds(values: np.ndarray, skip: np.ndarray | None) -> tuple[float | int | None, float | int | None]:
    """Smallest and largest value outside the mask, as Python numbers; None where there are none."""
    if skip is not None:
        values = values[~skip]
    if not values.size:
        return None, None
    if values.dtype.kind == "V" or (values.dtype.itemsize < 4 and values.dtype.kind not in "iub"):
        values = values.astype(np.float32)
    return values.min().item(), values.max().item()
