"""`health.parquet`: every measured figure of a run, a row per step, kind and layer."""

from __future__ import annotations

import contextlib
import errno
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from castiron.data.files import written_atomically
from castiron.health.dynamics import Update
from castiron.health.snapshot import LayerUpdate, Snapshot, rows_of
from castiron.health.statistics import WHAT_IF, Statistics, WhatIf, bins_of
from castiron.health.writing import Unwritable

FILE = "health.parquet"

_WHOLE = ("size", "zeros", "subnormals", "nans", "infinities", "wanted_updates", "lost_updates", "dead_units",
          "units")  # fmt: skip
_REAL = ("largest", "smallest", "rms", "headroom_up", "headroom_down", "update_ratio", "moment_underflow",
         "moment_overflow", "growth", "accumulation_noise")  # fmt: skip

SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("kind", pa.dictionary(pa.int8(), pa.string())),
        ("layer", pa.dictionary(pa.int32(), pa.string())),
        ("dtype", pa.dictionary(pa.int8(), pa.string())),
        *((name, pa.int64()) for name in _WHOLE),
        *((name, pa.float64()) for name in _REAL),
        ("first_exponent", pa.int16()),
        ("exponents", pa.list_(pa.int64())),
        *(
            (f"{name}/{figure}", pa.int16() if figure == "scale" else pa.float32())
            for name in WHAT_IF
            for figure in ("overflow", "underflow", "subnormal", "snr_db", "scale", "scaled_underflow",
                           "scaled_subnormal", "scaled_snr_db")
        ),
    ]
)  # fmt: skip
"""`exponents` are the bins from `first_exponent` on (biased as float32's, or float64's) to the last that is
filled."""


_PACKED, _FIRST = 500, 2000
"""Rows that are packed together, and that are first written."""
_WAITING = 100_000
"""Rows that wait in memory where the file cannot be written, at most."""


class HealthTable:
    """Writes the rows of snapshots. The file is whole at any time: it is rewritten when as much is new as
    is there, and at the end. Where that fails, rows wait in memory (the latest `_WAITING`) until it does not.

    Args:
        folder: of the run.
        resumed_at: last step that training goes on from; rows of later steps happened to nobody.
        unwritable: told where the file cannot be written, or is damaged.
    """

    def __init__(
        self, folder: str | Path, *, resumed_at: int | None = None, unwritable: Unwritable | None = None
    ) -> None:
        self.path = Path(folder) / FILE
        self.dropped = 0
        """Rows that could not be written, and did not fit into memory."""
        self._unwritable = unwritable or Unwritable()
        self._resumed_at = resumed_at
        self._rows: list[dict[str, Any]] = []
        self._packed: list[tuple[int, bytes]] = []
        """Rows that wait, as Parquet: a fraction of what they take as objects."""
        self._written = self._again = 0
        try:
            self._open()
        except (OSError, pa.ArrowException) as e:
            self._set_aside(e)

    def _open(self) -> None:
        if self.path.exists():
            if self._resumed_at is None:
                self.path.unlink()
            else:
                with pq.ParquetFile(self.path) as file:
                    self._written = file.metadata.num_rows

    def _set_aside(self, error: Exception) -> None:
        """A file that cannot be read is not written over."""
        aside = self.path.with_name(f"damaged-{FILE}")
        with contextlib.suppress(OSError):
            self.path.replace(aside)
        reason = error if isinstance(error, OSError) else OSError(errno.EINVAL, "what is there is damaged")
        self._unwritable.report(
            "Rows of health", self.path, reason, f"It is begun anew; what was there is now {aside.name}."
        )

    @property
    def _waiting(self) -> int:
        return sum(count for count, _ in self._packed) + len(self._rows)

    def add(self, snapshot: Snapshot) -> None:
        """One more snapshot."""
        self._rows += rows_of(snapshot)
        if len(self._rows) >= _PACKED:
            self._pack()
            if self._waiting >= max(self._written, self._again, _FIRST):
                self._write_or_wait()

    def _pack(self) -> None:
        if self._rows:
            packed = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(self._rows, SCHEMA), packed, compression="zstd")
            self._packed.append((len(self._rows), packed.getvalue()))
            self._rows = []

    def _write_or_wait(self) -> None:
        try:
            self.flush()
        except (OSError, pa.ArrowException) as e:
            if not isinstance(e, OSError):
                self._set_aside(e)
            self._again = min(2 * self._waiting, _WAITING)
            while self._waiting > _WAITING:
                self.dropped += self._packed.pop(0)[0]
            remedy = "Make room or grant access; training goes on, and rows are kept in memory until then."
            reason = e if isinstance(e, OSError) else OSError(str(e))
            self._unwritable.report("Rows of health", self.path, reason, remedy)

    def close(self) -> None:
        """Have the file hold what is left, where it can be written."""
        self._write_or_wait()

    def flush(self) -> None:
        """Have the file hold everything.

        Raises:
            OSError: it cannot be written; the rows are kept.
        """
        self._pack()
        if not self._packed:
            return
        parts = [pq.read_table(io.BytesIO(packed)).cast(SCHEMA) for _, packed in self._packed]
        fresh = pa.concat_tables(parts).unify_dictionaries()
        with written_atomically(self.path) as file, pq.ParquetWriter(file, SCHEMA, compression="zstd") as out:
            total = 0
            for batch in self._old():
                out.write_table(batch)
                total += batch.num_rows
            out.write_table(fresh)
        self._written, self._packed = total + fresh.num_rows, []
        self._resumed_at, self._again = None, 0

    def _old(self) -> Iterator[pa.Table]:
        if not self.path.exists():
            return
        with pq.ParquetFile(self.path) as file:
            for i in range(file.num_row_groups):
                group = file.read_row_group(i)
                if self._resumed_at is not None:
                    group = group.filter(pa.compute.less_equal(group["step"], self._resumed_at))
                for i, column in enumerate(SCHEMA):  # what an earlier version did not measure is null
                    if column.name not in group.column_names:
                        group = group.add_column(i, column, pa.nulls(group.num_rows, column.type))
                yield group.cast(SCHEMA)


def read(folder: str | Path) -> list[Snapshot]:
    """The snapshots of a run, from its `health.parquet`; what a table does not hold (levels, casts) is left
    out. Empty where there is no such file."""
    path = Path(folder) / FILE
    if not path.exists():
        return []
    steps: dict[int, tuple[Any, ...]] = {}
    for row in pq.read_table(path).to_pylist():
        groups, updates, dead, full, peaks, noise = steps.get(row["step"], ({}, {}, {}, False, {}, {}))
        if row["exponents"] is None:
            peaks[row["kind"], row["layer"]] = (row["dtype"], row["largest"])
            steps[row["step"]] = (groups, updates, dead, full, peaks, noise)
            continue
        exponents = np.zeros(bins_of(row["dtype"]), np.int64)
        first = row["first_exponent"]
        exponents[first : first + len(row["exponents"])] = row["exponents"]
        made: dict[str, WhatIf] = {}
        for name in WHAT_IF:
            if row[f"{name}/overflow"] is not None:
                full = True
                made[name] = _what_if(name, row)
        layer = row["layer"]
        finite = row["size"] - int(exponents[-1])
        groups[row["kind"], layer] = Statistics(
            row["dtype"],
            row["size"],
            exponents,
            row["zeros"],
            row["nans"],
            row["largest"],
            row["smallest"],
            row["rms"] ** 2 * finite,
            made,
        )
        if row["wanted_updates"] is not None:
            moved = Update(row["wanted_updates"], row["lost_updates"], _number(row["update_ratio"]))
            updates[layer] = LayerUpdate(moved, row["dtype"])
        if row["units"] is not None:
            dead[layer] = (row["dead_units"], row["units"])
        if row.get("accumulation_noise") is not None:
            noise[layer] = row["accumulation_noise"]
        steps[row["step"]] = (groups, updates, dead, full, peaks, noise)
    return [
        Snapshot(step, groups=g, updates=u, dead=d, full=f, peaks=p, noise=n)
        for step, (g, u, d, f, p, n) in sorted(steps.items())
    ]


def _what_if(name: str, row: dict[str, Any]) -> WhatIf:
    def figure(of: str) -> float:
        return _number(row[f"{name}/{of}"])

    return WhatIf(
        name,
        figure("overflow"),
        figure("underflow"),
        figure("subnormal"),
        figure("snr_db"),
        int(row[f"{name}/scale"]),
        figure("scaled_underflow"),
        figure("scaled_subnormal"),
        figure("scaled_snr_db"),
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
