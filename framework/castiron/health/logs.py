"""Where a few figures of a snapshot go besides TensorBoard: anything that logs numbers by name and step."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from castiron.health.snapshot import Kind, Snapshot, headroom


class ScalarLog(Protocol):
    """What logs numbers. Lightning's loggers (CSV, MLflow, W&B) are such."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Numbers of one step, by name."""


class CSVLog:
    """A row per step in a CSV file; a file that is there is written anew.

    Args:
        path: of the file.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._rows: list[dict[str, float]] = []
        self._names: list[str] = ["step"]

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Numbers of one step. A name that comes for the first time has the file written again."""
        row = {"step": float(step), **metrics}
        self._rows.append(row)
        new = [name for name in row if name not in self._names]
        self._names += new
        fresh = bool(new) or len(self._rows) == 1
        with open(self._path, "w" if fresh else "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._names)
            if fresh:
                writer.writeheader()
            for r in self._rows if fresh else [row]:
                writer.writerow({**r, "step": int(r["step"])})


def summary_of(snapshot: Snapshot) -> dict[str, float]:
    """A few figures of a snapshot, for any logger: the worst over all layers. A measurement of the largest
    magnitudes alone has headroom alone."""
    values: dict[str, float] = {}
    kinds: tuple[Kind, ...] = ("activations", "activation gradients", "gradients", "parameters")
    for kind in kinds:
        tops = snapshot.largest(kind).values()
        ups = [up for dtype, top in tops if (up := headroom(dtype, top)) is not None]
        if ups:
            values[f"health/headroom/{kind}"] = min(ups)
    if snapshot.updates:
        values["health/lost_updates"] = max(u.update.lost_share for u in snapshot.updates.values())
    return values
