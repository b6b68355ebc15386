"""Where a cell is."""

from __future__ import annotations

from dataclasses import dataclass

from castiron.diagnostics import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class CellPlace(Place):
    """A cell of a data file: `reviews.csv:813, column 3`; without lines `reviews.parquet, row 813`."""

    unit: str = "line"

    def __str__(self) -> str:
        text = self.file or ""
        if self.line is not None:
            text += f":{self.line}" if self.unit == "line" else f", {self.unit} {self.line}"
        return f"{text}, column {self.column}" if self.column is not None else text
