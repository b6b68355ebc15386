"""Where a cell is."""

from __future__ import annotations

from dataclasses import dataclass

from castiron.diagnostics import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class CellPlace(Place):
    """A cell of a file of lines: `reviews.csv:813, column 3`."""

    def __str__(self) -> str:
        line = "" if self.line is None else f":{self.line}"
        return _cell(f"{self.file or ''}{line}", self.column)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPlace(Place):
    """A value in a file without lines: `reviews.parquet, row 813`. `line` counts its rows."""

    def __str__(self) -> str:
        row = "" if self.line is None else f", row {self.line}"
        return _cell(f"{self.file or ''}{row}", self.column)


def _cell(text: str, column: int | None) -> str:
    return text if column is None else f"{text}, column {column}"
