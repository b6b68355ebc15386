"""Plans, data reports and metrics as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from castiron.cli import console

if TYPE_CHECKING:
    from castiron.data import DataReport
    from castiron.policy import Plan


def plan_table(plan: Plan) -> None:
    """A row per layer that computes or stores something."""
    rows = [
        (
            row.path or "(model)",
            row.type,
            row.param if row.parameters else "–",
            row.compute,
            row.output,
            f"{row.n_parameters:,}" if row.n_parameters else "–",
            row.reasons.get("compute", ""),
        )
        for row in plan.layers()
    ]
    console.table(("layer", "type", "param", "compute", "output", "parameters", "why"), rows, right=(5,))


def data_report(split: str, report: DataReport) -> None:
    """A row per field: what was read, and what its cast did."""
    dropped = f"; {report.dropped:,} of {report.rows_read:,} left out as declared" if report.dropped else ""
    console.heading(f"{split}: {report.rows:,} rows{dropped}")
    for file in report.files:
        digest = f"  sha256 {file.sha256[:12]}…" if file.sha256 else ""
        console.say(f"{file.file}  {file.rows:,} rows  {file.bytes:,} bytes{digest}")
    rows = [
        (
            c.field,
            c.role,
            c.column,
            f"{c.source_dtype} → {c.target_dtype}",
            f"{c.exact:,}",
            f"{c.rounded:,}",
            f"{c.lossy:,}",
            f"{c.largest_relative_error:.1e}" if c.rounded else "–",
            f"{c.missing:,}" + (f" ({c.treatment})" if c.missing else ""),
            _range(c.minimum, c.maximum),
        )
        for c in report.columns
    ]
    headers = (
        "field",
        "role",
        "column",
        "cast",
        "exact",
        "rounded",
        "lossy",
        "largest error",
        "missing",
        "range",
    )
    console.table(headers, rows, right=(4, 5, 6, 7))
    if report.extra_columns:
        console.say(f"Columns that no field reads: {', '.join(report.extra_columns)}")


def metrics_table(metrics: Mapping[str, Mapping[str, float]]) -> None:
    """A row per split, a column per metric."""
    names = list(dict.fromkeys(name for values in metrics.values() for name in values))
    rows = [
        (split, *(f"{values[n]:.4f}" if n in values else None for n in names))
        for split, values in metrics.items()
    ]
    console.table(("split", *names), rows, right=range(1, len(names) + 1))


def _range(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{low:g} … {high:g}"
