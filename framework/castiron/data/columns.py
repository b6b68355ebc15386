"""One field over all blocks: its values, what is declared to be done with odd cells, and its report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from castiron.data.casts import cast
from castiron.data.cells import Faults, Judged, judge
from castiron.data.missing import FittedMissing, FittedValue
from castiron.data.readers.source import Cells, Numbers
from castiron.data.report import BadCell, ColumnReport
from castiron.data.schema import Field
from castiron.data.store import ArrayStore, TextStore, fit
from castiron.formats import number_format
from castiron.policy.sections import CastSection

LISTED = 100_000
"""Bad cells that are listed one by one in the report; all are counted."""


@dataclass(slots=True)
class Tally:
    """Cells of one field with one fault and one consequence."""

    code: str
    severity: str
    consequence: str
    """refused, dropped, replaced, kept"""
    count: int = 0
    first: BadCell | None = None


@dataclass
class Problems:
    """All odd cells of a load."""

    cells: list[BadCell] = field(default_factory=list)
    """Those that are refused, up to LISTED."""
    total: int = 0
    tallies: dict[tuple[str, str, str], Tally] = field(default_factory=dict)
    """By field, code and consequence."""

    def sort_from(self, start: int) -> None:
        """Order the cells from this one on by where they are, not by field."""
        self.cells[start:] = sorted(self.cells[start:], key=lambda c: (c.line or 0, c.column or 0))

    def add(
        self, name: str, faults: Faults, severity: str, consequence: str, describe: Callable[[int], BadCell]
    ) -> None:
        """Count faults; describe the refused ones, and the first of the others."""
        key = (name, faults.code, consequence)
        tally = self.tallies.setdefault(key, Tally(faults.code, severity, consequence))
        tally.count += len(faults.at)
        refused = consequence == "refused"
        wanted = LISTED - len(self.cells) if refused else 0
        at = np.asarray(faults.at)[: max(wanted, 0 if tally.first else 1)].tolist()
        for position in at:
            cell = describe(position)
            tally.first = tally.first or cell
            if wanted > 0:
                self.cells.append(cell)
                wanted -= 1
        if refused:
            self.total += len(faults.at)


class ColumnBuilder:
    """Collects one field, block by block.

    Args:
        part: the field.
        casts: what the policy says of rounded and lossy casts.
        spellings: cell texts that mean missing, by file kind.
        fitted: statistics of the training data, for the other splits; None: this is the training data.
        keep: whether to keep the values; else they are judged only.
    """

    def __init__(
        self, part: Field, casts: CastSection, fitted: FittedMissing | None, *, keep: bool = True
    ) -> None:
        self.part = part
        self.report = ColumnReport(
            field=part.name,
            role=part.role,
            target_dtype=part.form,
            treatment=part.missing.treatment,
        )
        self._casts = casts
        self._fitted = fitted
        self._keep = keep
        self._store: ArrayStore | TextStore = TextStore()
        if part.dtype is not None:
            self._store = ArrayStore(number_format(part.dtype).numpy_dtype, part.shape)
        self._gaps: list[np.ndarray] = []
        """Flat positions, over all rows kept, that a statistic will fill."""
        self._rows = 0
        self._size = int(np.prod(part.shape))
        self._values: np.ndarray | pa.Array | None = None
        self._block_gaps: np.ndarray | None = None
        self._room: np.ndarray | None = None
        """Where the block's values go, and may be written to at once."""

    def look(self, cells: Cells, spellings: tuple[str, ...]) -> Judged:
        """Cast a block's cells and find what is odd; several fields may do so at once."""
        self._room = self._room_for(cells)
        return judge(cells, self.part, spellings, self.report.largest_relative_error, self._room)

    def take(
        self,
        cells: Cells,
        judged: Judged,
        problems: Problems,
        cell: Callable[[int, str], tuple[str, int | None, int | None]],
    ) -> np.ndarray | None:
        """Decide on what was found in a block; returns the mask of rows to leave out [rows], or None.

        Args:
            judged: what `look` made of the cells.
            cell: row in the block and field name to (file, line, column).
        """
        part, report = self.part, self.report
        rows = len(judged.values)
        report.rows += rows
        report.values += rows * self._size
        self._saw(cells.source)
        if not isinstance(cells, Numbers):
            report.written_as_text += cells.written_as_text
        drop: np.ndarray | None = None
        missing = None if judged.missing is None else judged.missing.ravel()
        for faults in judged.faults:
            consequence, severity = self._consequence(faults)
            self._count(faults)
            if consequence == "ignored":
                continue
            if faults.kind in ("bad", "lossy"):
                at = np.asarray(faults.at)
                if consequence == "dropped":
                    drop = np.zeros(rows, dtype=bool) if drop is None else drop
                    drop[at // self._size] = True
                elif consequence == "replaced":
                    missing = np.zeros(rows * self._size, dtype=bool) if missing is None else missing.copy()
                    missing[at] = True
            problems.add(part.name, faults, severity, consequence, self._describe(faults, cell))
        if judged.missing is not None:
            self._missing(judged, problems, cell)
            report.missing += int(np.count_nonzero(judged.missing))
        report.rounded += judged.rounded
        report.subnormal += judged.subnormal
        error = judged.largest_relative_error
        report.largest_relative_error = max(report.largest_relative_error, error)
        self._range(judged.lowest, judged.highest)
        self._values, self._block_gaps = judged.values, None
        if missing is not None and missing.any():
            if part.missing.treatment == "drop":
                gaps = missing.reshape(rows, self._size).max(axis=1)
                drop = gaps if drop is None else drop | gaps
            else:
                self._fill(missing)
        return drop

    def _saw(self, source: str) -> None:
        seen = self.report.source_dtype.split(", ") if self.report.source_dtype else []
        if source not in seen:
            self.report.source_dtype = ", ".join([*seen, source])

    def _range(self, low: float | int | None, high: float | int | None) -> None:
        report = self.report
        if low is not None and high is not None:
            report.minimum = low if report.minimum is None else min(report.minimum, low)
            report.maximum = high if report.maximum is None else max(report.maximum, high)

    def _count(self, faults: Faults) -> None:
        if faults.kind == "bad":
            self.report.bad += len(faults.at)
        elif faults.kind == "lossy":
            self.report.lossy += len(faults.at)

    def _consequence(self, faults: Faults) -> tuple[str, str]:
        """What happens to these cells, and how severe that is."""
        part, casts = self.part, self._casts
        if faults.kind == "rounded":
            return ("refused", "error") if casts.rounding == "error" else ("ignored", "info")
        if faults.kind == "absent":
            if part.missing.treatment == "error" and not self._may_be_nan():
                return "refused", "error"
            return ("dropped" if part.missing.treatment == "drop" else "replaced"), "warning"
        if part.bad == "drop":
            return "dropped", "info"
        if part.bad == "missing":
            treated = part.missing.treatment != "error" or self._may_be_nan()
            return ("replaced", "info") if treated else ("refused", "error")
        kept = faults.kind == "lossy" and casts.lossy == "report"
        return ("kept", "warning") if kept else ("refused", "error")

    def _may_be_nan(self) -> bool:
        """Whether the policy lets a missing value be NaN where the field says nothing of it."""
        dtype = self.part.dtype
        return self._casts.missing == "report" and dtype is not None and number_format(dtype).is_float

    def _missing(
        self,
        judged: Judged,
        problems: Problems,
        cell: Callable[[int, str], tuple[str, int | None, int | None]],
    ) -> None:
        treatment = self.part.missing.treatment
        assert judged.missing is not None
        at = np.flatnonzero(judged.missing)
        for absent in (f for f in judged.faults if f.kind == "absent"):
            at = at[~np.isin(at // self._size, np.asarray(absent.at) // self._size)]  # told as D124
        if not len(at):
            return
        if self._size > 1:  # one a row
            at = at[np.unique(at // self._size, return_index=True)[1]]
        if treatment == "error":
            kept = self._may_be_nan()
            consequence, severity = ("kept", "warning") if kept else ("refused", "error")
        else:
            consequence, severity = ("dropped" if treatment == "drop" else "replaced"), "info"
        empty = Faults("D102", "missing", at, judged.what_is_missing)
        problems.add(self.part.name, empty, severity, consequence, self._describe(empty, cell))

    def _describe(
        self, faults: Faults, cell: Callable[[int, str], tuple[str, int | None, int | None]]
    ) -> Callable[[int], BadCell]:
        name = self.part.name

        def describe(position: int) -> BadCell:
            file, line, column = cell(position // self._size, name)
            return BadCell(
                code=faults.code,
                field=name,
                file=file,
                line=line,
                column=column,
                received=faults.received(position),
                expected=faults.expected or f"{self.part.form} for field '{name}'",
                message=faults.message(position) if faults.message else "",
            )

        return describe

    def _fill(self, missing: np.ndarray) -> None:
        """Put NaN, the constant, or (later) the statistic in place of missing values."""
        part = self.part
        treatment = part.missing.treatment
        if treatment == "error" and not self._may_be_nan():
            return  # refused: the values are never handed on
        self.report.treated += int(np.count_nonzero(missing))
        if part.is_text:
            assert self._values is not None
            constant = pa.scalar(part.missing.value, pa.string())
            self._values = pc.if_else(pa.array(missing), constant, self._values)
            return
        values = np.array(self._values)  # the reader's own array is read-only
        if treatment in ("mean", "median"):
            self._block_gaps = np.flatnonzero(missing)
            values.reshape(-1)[missing] = 0
        elif treatment == "constant":
            values.reshape(-1)[missing] = self._constant()
        else:
            values.reshape(-1)[missing] = np.nan
        self._values = values

    def _constant(self) -> np.ndarray:
        part, value = self.part, self.part.missing.value
        assert part.dtype is not None
        if part.categories is not None:
            word = ("true" if value else "false") if isinstance(value, bool) else str(value)
            value = part.categories[word]
        return cast(np.array([value]), part.dtype).values[0]  # type: ignore[no-any-return]

    def _room_for(self, cells: Cells) -> np.ndarray | None:
        if not (self._keep and isinstance(self._store, ArrayStore) and isinstance(cells, Numbers)):
            return None
        return self._store.room(len(cells.values))

    def reserve(self, rows: int) -> None:
        """So many rows are still to come."""
        if self._keep and isinstance(self._store, ArrayStore):
            self._store.reserve(rows)

    def commit(self, keep: np.ndarray | None) -> None:
        """Take the judged block over, less the rows outside the mask [rows]."""
        values, gaps = self._values, self._block_gaps
        assert values is not None
        if keep is not None:
            values = values.filter(pa.array(keep)) if isinstance(values, pa.Array) else values[keep]
            if gaps is not None:
                left = np.cumsum(keep) - 1
                gaps = gaps[keep[gaps // self._size]]
                gaps = left[gaps // self._size] * self._size + gaps % self._size
        if gaps is not None and len(gaps):
            self._gaps.append(self._rows * self._size + gaps)
        self._rows += len(values)
        if self._keep and values is not self._room:
            self._store.append(values)
        elif self._keep:
            self._store.rows += len(values)
        self._values = self._block_gaps = self._room = None

    def finish(self) -> tuple[np.ndarray | pa.ChunkedArray, FittedValue | None]:
        """The whole column, gaps filled, and the statistic, where one was fitted here; then begins anew,
        while the report goes on.

        Raises:
            LookupError: there is nothing to take the statistic from.
        """
        part, report = self.part, self.report
        report.exact = report.values - report.rounded - report.lossy - report.bad - report.missing
        values = self._store.finish()
        gaps = np.concatenate(self._gaps) if self._gaps else np.zeros(0, dtype=np.int64)
        self._gaps, self._rows = [], 0
        if not isinstance(values, np.ndarray) or not self._keep:
            return values, None
        statistic = part.missing.treatment
        if statistic not in ("mean", "median"):
            return values, None
        fitted = fit(values, gaps, statistic) if self._fitted is None else self._fitted.values.get(part.name)
        if len(gaps):
            if fitted is None:
                raise LookupError(part.name)
            assert part.dtype is not None
            values.reshape(-1)[gaps] = cast(np.array([fitted.value]), part.dtype).values[0]
        return values, fitted if self._fitted is None else None
