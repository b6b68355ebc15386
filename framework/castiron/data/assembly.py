"""Columns to batches: what may enter, and how rows are put side by side."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from castiron.data.order import EpochOrder
from castiron.data.ragged import Int64, Ragged
from castiron.data.windows import Windows
from castiron.diagnostics import DataError, Finding, Place, finding
from castiron.formats import FORMATS

Batch = dict[str, np.ndarray]
"""Dense fields [B, ...] in their dtype; of a ragged field F, F int64 [B, T] and F_length int64 [B]; and row,
int64 [B]."""

Columns = Mapping[str, np.ndarray | Ragged | Windows]

ROW = "row"
LENGTH = "_length"

_SMALL = 256 * 1024  # bytes assembled in one go, so that many small batches share one round of overhead
_MOST = 32  # batches, likewise


class Assembler:
    """Makes batches of checked columns, several at a time.

    Raises:
        DataError: D150, D151 or D152; every column at fault is named.
    """

    def __init__(
        self, columns: Columns, *, allow_float64: Collection[str] = (), row_numbers: Int64 | None = None
    ) -> None:
        allow_float64 = {allow_float64} if isinstance(allow_float64, str) else allow_float64
        if problems := [*_problems(columns, allow_float64), *_disagreements(columns, row_numbers)]:
            raise DataError(problems)
        self.columns = {name: _native(column) for name, column in columns.items()}
        self.row_numbers = row_numbers
        self.rows = len(next(iter(self.columns.values())))

    @property
    def bytes_per_row(self) -> float:
        """Average bytes of a row, padding not counted."""
        total = 8 * self.rows
        for column in self.columns.values():
            total += 8 * column.values.size if isinstance(column, Ragged) else column.nbytes
        return total / max(self.rows, 1)

    def batches_at_once(self, batch_size: int) -> int:
        """How many batches to assemble together: many where they are small."""
        return int(min(max(_SMALL // max(self.bytes_per_row * batch_size, 1), 1), _MOST))

    def batches(self, rows: Int64, cuts: Sequence[int]) -> list[Batch]:
        """The batches `rows[cuts[b]:cuts[b + 1]]`, each with arrays of its own rows."""
        taken = {
            name: column if isinstance(column, Ragged) else column.take(rows, axis=0)
            for name, column in self.columns.items()
        }
        numbers = rows.copy() if self.row_numbers is None else self.row_numbers.take(rows)
        result = []
        for start, end in pairwise(cuts):
            batch: Batch = {}
            for name, column in taken.items():
                if isinstance(column, Ragged):
                    batch[name], batch[name + LENGTH] = column.pad(rows[start:end])
                else:
                    batch[name] = column[start:end]
            batch[ROW] = numbers[start:end]
            result.append(batch)
        return result


class Chunks:
    """A random-access source for `grain`: element i is a list of batches of one epoch, `size` of them."""

    def __init__(self, assembler: Assembler, order: EpochOrder, *, first: int, size: int) -> None:
        self._assembler = assembler
        self._order = order
        self._first = first
        self._size = size

    def __len__(self) -> int:
        return -(-(len(self._order.cuts) - 1 - self._first) // self._size)

    def __getitem__(self, index: int) -> list[Batch]:
        begin = self._first + index * self._size
        cuts = self._order.cuts[begin : begin + self._size + 1]
        rows = self._order.rows[cuts[0] : cuts[-1]]
        return self._assembler.batches(rows, (cuts - cuts[0]).tolist())


def _problems(columns: Mapping[str, Any], allow_float64: Collection[str]) -> list[Finding]:
    found = []
    for name, column in columns.items():
        if isinstance(column, Ragged):
            continue
        place = Place(field=name)
        if (what := _unformatted(column)) is not None:
            received, remedy = what
            found.append(
                finding(
                    "D150",
                    f"Column '{name}' cannot be batched.",
                    place=place,
                    expected="an array of a number format, or Ragged",
                    received=received,
                    remedy=remedy,
                )
            )
        elif column.dtype.name == "float64" and name not in allow_float64:
            found.append(
                finding(
                    "D151",
                    f"Column '{name}' is float64, and no field declares it.",
                    place=place,
                    expected="the declared dtype, such as float32",
                    received=f"float64 {list(column.shape)}",
                )
            )
    return found


def _disagreements(columns: Columns, row_numbers: Int64 | None) -> list[Finding]:
    if not columns:
        return [finding("D152", "There is nothing to batch.", expected="columns", received="none")]
    found = []
    taken = {ROW: "the row numbers"} | {
        name + LENGTH: f"the lengths of '{name}'" for name, c in columns.items() if isinstance(c, Ragged)
    }
    for name in columns:
        if name in taken:
            found.append(
                finding(
                    "D152",
                    f"The name '{name}' is taken: batches keep {taken[name]} under it.",
                    place=Place(field=name),
                    remedy="Rename the field.",
                )
            )
    counts: dict[str, int] = {
        f"'{name}'": len(column) for name, column in columns.items() if _countable(column)
    }
    if row_numbers is not None:
        counts["the row numbers"] = len(row_numbers)
    if len(set(counts.values())) > 1:
        received = ", ".join(f"{what} has {count:,}" for what, count in counts.items())
        found.append(
            finding(
                "D152", "Columns differ in their number of rows.", expected="one number", received=received
            )
        )
    return found


def _countable(column: Any) -> bool:
    return hasattr(column, "__len__") and getattr(column, "ndim", 1) > 0


def _unformatted(column: Any) -> tuple[str, str | None] | None:
    """What a column without number format is, and the remedy (None: the rule's); None where it has one."""
    text = "Encode text with a TextEncoder, or numbers in text through a schema."
    if isinstance(column, pa.ChunkedArray | pa.Array):
        return f"{column.type} of Arrow", text if "string" in str(column.type) else None
    if isinstance(column, Windows):
        column = column.values
    if not isinstance(column, np.ndarray):
        if isinstance(column, list | tuple):
            return _described_objects(list(column), type(column).__name__)
        return type(column).__name__, None
    if isinstance(column, np.ma.MaskedArray):
        return "a masked array", "Fill the masked values as the schema's `missing` says."
    if column.ndim == 0:
        return "a single value without rows", None
    if column.dtype.kind in "US" or column.dtype == np.dtypes.StringDType():
        return f"text, first {str(column.flat[0])!r}" if column.size else "text", text
    if column.dtype == object:
        return _described_objects(list(column), "object array")
    if column.dtype.name not in FORMATS:
        return column.dtype.name, None
    return None


def _described_objects(items: list[Any], container: str) -> tuple[str, str | None]:
    """The first row of Python objects that says why they have no format."""
    sized = [
        (i, len(x)) for i, x in enumerate(items) if isinstance(x, list | tuple | np.ndarray) and np.ndim(x)
    ]
    if sized and len(sized) == len(items):
        other = next(((i, n) for i, n in sized if n != sized[0][1]), None)
        lengths = f"{sized[0][1]} and {other[1]} values in rows 0 and {other[0]}" if other else "sequences"
        remedy = "Make a Ragged of integer sequences (Ragged.from_rows), or an array of one shape."
        return f"{container} of {lengths}", remedy
    for index, item in enumerate(items):
        if item is None or isinstance(item, str | bytes):
            kind = "null" if item is None else f"{item!r} (text)"
            return f"{container} with {kind} in row {index}", None
    kinds = sorted({type(item).__name__ for item in items})
    return f"{container} of {', '.join(kinds) or 'nothing'}", "Make a NumPy array of the field's dtype."


def _native(column: np.ndarray | Ragged | Windows) -> np.ndarray | Ragged | Windows:
    """The column in the machine's byte order (files may have the other one); an exact change."""
    if isinstance(column, Ragged) or column.dtype.isnative:
        return column
    native = column.dtype.newbyteorder("=")
    return column.in_format(native) if isinstance(column, Windows) else column.astype(native)
