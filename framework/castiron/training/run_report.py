"""What a run's folder says, gathered: verdict, plan, data, audit, curves, health, incidents, environment.

Each part is read from the file that the run keeps of it, and is missing where that file is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from castiron.data import DataReport
from castiron.diagnostics import CastironError, Finding
from castiron.health import table
from castiron.health.fitting import would_do
from castiron.health.recorder import read_advice
from castiron.health.snapshot import KINDS, Snapshot
from castiron.policy.plan import Plan
from castiron.training.audit import AuditReport
from castiron.training.incident import Incident
from castiron.training.incident_folder import IncidentFolder, listed_incidents
from castiron.training.incident_text import as_text as incident_text
from castiron.training.run_directory import AUDIT, CONFIG, DATA, ENVIRONMENT, PLAN, RunDirectory

T = TypeVar("T")
Curve = list[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """A run, as far as its folder tells."""

    name: str
    path: Path
    summary: Mapping[str, Any]
    config: str = ""
    plan: Plan | None = None
    data: Sequence[DataReport] = ()
    audit: AuditReport | None = None
    curves: Mapping[str, Curve] = field(default_factory=dict)
    """Scalars of `metrics.jsonl` by name, over steps."""
    snapshots: Sequence[Snapshot] = ()
    advice: Sequence[tuple[int, Finding]] = ()
    """With the step at which it was said."""
    incidents: Sequence[tuple[Incident, Path]] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    unreadable: Sequence[str] = ()
    """What there is, but cannot be read, and why."""

    # --- the verdict -------------------------------------------------------------------------------

    @property
    def is_well(self) -> bool:
        """Whether the run came to its end, and nothing of severity error or warning is on record."""
        return (
            self.summary.get("status") == "completed"
            and not self.incidents
            and not self.summary.get("held_steps")
            and (self.audit is None or self.audit.ok)
            and not any(f.severity in ("error", "warning") for _, f in self.advice)
        )

    def verdict(self) -> list[str]:
        """The run in a few sentences, the most important first."""
        s = self.summary
        status, steps = str(s.get("status", "running")), s.get("steps")
        first = f"{status.capitalize()}" + (f" after {steps:,} steps" if isinstance(steps, int) else "")
        if isinstance(s.get("duration_s"), int | float):
            first += f" in {_duration(s['duration_s'])}"
        lines = [first + "."]
        if s.get("message"):
            lines.append(str(s["message"]))
        for split, values in (s.get("metrics") or {}).items():
            if values:
                lines.append(
                    f"{split}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items() if v is not None)
                )
        held = s.get("held_steps") or 0
        if self.incidents or held:
            lines.append(f"{_count(held, 'step')} held, {_count(len(self.incidents), 'incident')} on record.")
        elif "held_steps" in s:
            lines.append("No step was held: every update was finite.")
        if self.audit is not None:
            lines.append(f"Audit {self.audit.headline()}.")
        grave = [f for _, f in self.advice if f.severity != "info"]
        if grave:
            lines.append(f"Numerical health: {_count(len(grave), 'warning')}, the last: {grave[-1].message}.")
        elif self.snapshots:
            lines.append("Numerical health: nothing to warn of.")
        else:
            lines.append("Numerical health was not measured.")
        return lines

    def what_if(self) -> list[Finding]:
        """Formats that would hold what was measured (N528)."""
        return would_do(self.snapshots)

    # --- figures as rows ---------------------------------------------------------------------------

    def update_rows(self) -> list[tuple[str, ...]]:
        """Under `UPDATES`: a row per layer of the last measurement of updates."""
        last = next((s for s in reversed(self.snapshots) if s.updates), None)
        if last is None:
            return []
        return [
            (
                layer or "(model)",
                u.dtype,
                f"{u.update.ratio:.1e}",
                f"{100 * u.update.lost_share:.3g} %",
            )
            for layer, u in last.updates.items()
        ]


HEALTH = ("what", "step", "least headroom, binades (layer)", "most subnormal (layer)", "not finite")
UPDATES = ("layer", "weights", "‖update‖ / ‖weight‖", "lost updates")


def health_rows(snapshots: Sequence[Snapshot]) -> list[tuple[str, ...]]:
    """Under `HEALTH`: a row per kind, the layer that has least headroom in the last measurement of it."""
    rows: list[tuple[str, ...]] = []
    for kind in KINDS:
        last = next((s for s in reversed(snapshots) if s.kind(kind)), None)
        if last is None or kind == "updates":
            continue
        groups = last.kind(kind)
        ups = {layer: up for layer, s in groups.items() if (up := s.headroom_up()) is not None}
        tight = min(ups, key=lambda layer: ups[layer], default="")
        small = {layer: s.subnormals / s.live for layer, s in groups.items() if s.live}
        worst = max(small, key=lambda layer: small[layer], default="")
        rows.append(
            (
                kind,
                f"{last.step:,}",
                f"{ups[tight]:.1f} ({tight or 'model'})" if ups else "all zero",
                f"{100 * small[worst]:.2g} % ({worst or 'model'})" if small.get(worst) else "none",
                str(sum(s.non_finite for s in groups.values())),
            )
        )
    return rows


def gather(run: RunDirectory) -> RunReport:
    """Read a run's folder. What is missing is left out; what is damaged is named in `unreadable`."""
    unreadable: list[str] = []

    def attempt(name: str, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read() if (run.path / name).exists() else otherwise
        except (OSError, ValueError, KeyError, TypeError, ValidationError, CastironError) as e:
            unreadable.append(f"{name}: {str(e).splitlines()[0]}")
            return otherwise

    def text(name: str) -> str:
        return (run.path / name).read_text(encoding="utf-8")

    incidents: list[tuple[Incident, Path]] = []
    for path in listed_incidents(run.incidents):
        name = str(path.relative_to(run.path))
        incidents += attempt(name, functools.partial(_incident, path), [])
    return RunReport(
        name=run.name,
        path=run.path,
        summary=attempt("summary.json", run.summary, {"status": "running"}),
        config=attempt(CONFIG, lambda: text(CONFIG), ""),
        plan=attempt(PLAN, lambda: Plan.model_validate_json(text(PLAN)), None),
        data=attempt(DATA, lambda: _reports(run.read_json(DATA)), ()),
        audit=attempt(AUDIT, lambda: AuditReport.from_json(text(AUDIT)), None),
        curves=attempt("metrics.jsonl", lambda: _curves(run.metrics()), {}),
        snapshots=attempt(table.FILE, lambda: table.read(run.path), ()),
        advice=read_advice(run.path),
        incidents=incidents,
        environment=attempt(ENVIRONMENT, lambda: run.read_json(ENVIRONMENT), {}),
        unreadable=unreadable,
    )


def as_text(report: RunReport) -> str:
    """The report as plain lines, the verdict first."""
    lines = [f"Run {report.name}", "", *report.verdict()]
    lines += [f"Not readable: {problem}" for problem in report.unreadable]

    def section(title: str, body: Sequence[str]) -> None:
        if body:
            lines.extend(["", title, "-" * len(title), *body])

    section("Advice", [f"step {step:,}: {f}" for step, f in report.advice])
    if report.plan is not None:
        section("Plan", [report.plan.brief()])
    section("Data", "\n\n".join(r.as_text() for r in report.data).splitlines())
    if report.audit is not None:
        section("Audit", [f"{f}" for f in report.audit.findings] or ["Nothing found."])
    section(
        "Curves",
        [f"{name}: {c[0][1]:.4g} at step {c[0][0]:,.0f}, {c[-1][1]:.4g} at step {c[-1][0]:,.0f}"
         for name, c in report.curves.items()],
    )  # fmt: skip
    section("Health", _columns(HEALTH, health_rows(report.snapshots)))
    section("Updates", _columns(UPDATES, report.update_rows()))
    section("Other formats", [str(f) for f in report.what_if()])
    section("Incidents", [incident_text(i, path) for i, path in report.incidents])
    section("Environment", [f"{k}: {v}" for k, v in environment_rows(report.environment)])
    return "\n".join(lines) + "\n"


def environment_rows(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values, nested ones on a line."""
    rows = []
    for name, value in environment.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        elif isinstance(value, list):
            value = " ".join(str(v) for v in value)
        rows.append((name, str(value)))
    return rows


def _columns(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    every = [headings, *rows]
    widths = [max(len(row[i]) for row in every) for i in range(len(headings))]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in every]


def _incident(path: Path) -> list[tuple[Incident, Path]]:
    return [(IncidentFolder.open(path).incident, path)]


def _reports(record: Mapping[str, Any]) -> list[DataReport]:
    return [DataReport.model_validate(r) for r in record.values()]


def _curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for row in rows:
        for name, value in row.items():
            if name in ("step", "epoch", "time") or isinstance(value, bool):
                continue
            if isinstance(value, int | float):
                curves.setdefault(name, []).append((float(row.get("step", 0)), float(value)))
    return curves


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
