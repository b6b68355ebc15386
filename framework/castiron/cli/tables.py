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


def data_report(report: DataReport) -> None:
    """Files, and a row per field: what was read, and what its cast did."""
    from castiron.data.report import HEADINGS

    dropped = (
        f" ({report.rows_read:,} read, {report.dropped:,} left out as declared)" if report.dropped else ""
    )
    refused = f", {report.bad_cells_total:,} cells refused" if report.bad_cells_total else ""
    console.heading(f"{report.split}: {report.rows:,} rows{dropped}{refused}")
    for file in report.files:
        digest = f", blake3 {file.blake3[:12]}…" if file.blake3 else ""
        console.say(f"{file.file}: {file.rows:,} rows, {file.bytes:,} bytes{digest}")
    console.table(HEADINGS, report.as_table_rows(), right=range(3, len(HEADINGS)))
    if report.extra_columns:
        names = report.extra_columns
        more = f" and {len(names) - 50:,} more" if len(names) > 50 else ""
        console.say(f"Columns that no field reads: {', '.join(names[:50])}{more}")


def metrics_table(metrics: Mapping[str, Mapping[str, float]]) -> None:
    """A row per split, a column per metric."""
    names = list(dict.fromkeys(name for values in metrics.values() for name in values))
    rows = [
        (split, *(f"{values[n]:.4f}" if n in values else None for n in names))
        for split, values in metrics.items()
    ]
    console.table(("split", *names), rows, right=range(1, len(names) + 1))
