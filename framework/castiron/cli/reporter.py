"""A training, told live: one bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from castiron.cli import console
from castiron.cli.tables import data_report, plan_table
from castiron.training.backend import Progress

if TYPE_CHECKING:
    from castiron.data import DataReport
    from castiron.diagnostics import Finding
    from castiron.policy import Plan

PLAIN_EVERY_S = 10.0
"""Seconds between lines where there is no terminal; validations are always told."""


class TerminalReporter:
    """Tells what a backend does. Quiet shows findings only; verbose the whole plan and data report."""

    def __init__(self, verbosity: Literal["quiet", "normal", "verbose"] = "normal") -> None:
        self.verbosity = verbosity
        self._bar: Any = None
        self._task: Any = None
        self._told = 0.0
        self._metrics: Mapping[str, float] = {}
        self._last: Progress | None = None

    def say(self, text: str) -> None:
        if self.verbosity != "quiet":
            if self._bar is not None:
                self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
            else:
                console.say(text)

    def findings(self, findings: Sequence[Finding]) -> None:
        if not findings:
            return
        if self._bar is not None:
            from castiron.diagnostics.render import print_findings

            print_findings(findings, self._bar.console)
        else:
            console.findings(findings)

    def plan(self, plan: Plan) -> None:
        if self.verbosity == "quiet":
            return
        console.say(f"Plan: {plan.brief()}")
        if self.verbosity == "verbose":
            plan_table(plan)

    def data(self, reports: Mapping[str, DataReport]) -> None:
        if self.verbosity == "quiet":
            return
        for split, report in reports.items():
            dropped = f", {report.dropped:,} left out as declared" if report.dropped else ""
            files = f" from {', '.join(f.file for f in report.files)}" if report.files else ""
            console.say(f"Data: {split} {report.rows:,} rows{dropped}{files}")
            if self.verbosity == "verbose":
                data_report(report)

    # --- progress ----------------------------------------------------------------------------------

    def begin(self, progress: Progress) -> None:
        self._last = None
        if self.verbosity == "quiet":
            return
        if console.is_terminal():
            self._start_bar(progress)
        else:
            self._told = time.monotonic()

    def update(self, progress: Progress) -> None:
        self._last = progress
        if self._bar is not None:
            self._bar.update(
                self._task, completed=progress.step, total=progress.steps, text=describe(progress)
            )
        elif self.verbosity != "quiet":
            validated = progress.metrics != self._metrics
            if validated or time.monotonic() - self._told >= PLAIN_EVERY_S:
                self._line(progress)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._last is not None and self.verbosity != "quiet":
            self._line(self._last)
        self._last = None

    def _line(self, progress: Progress) -> None:
        if progress is not self._last or self._told >= 0:
            of = f"/{progress.steps}" if progress.steps else ""
            console.say(f"step {progress.step}{of}  {describe(progress)}")
        self._told = time.monotonic()
        self._metrics = dict(progress.metrics)
        self._last = None

    def _start_bar(self, progress: Progress) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}", markup=False),
            TimeRemainingColumn(),
            console=console.rich_console(),
            refresh_per_second=2,
        )
        self._task = self._bar.add_task(
            "", total=progress.steps, completed=progress.step, text=describe(progress)
        )
        self._bar.start()


def describe(progress: Progress) -> str:
    """`epoch 2/3  loss 0.4132  validation accuracy 0.8123  11,204 items/s  scale 65536  held 1`."""
    epochs = f"/{progress.epochs}" if progress.epochs else ""
    parts = [f"epoch {progress.epoch}{epochs}"]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.metrics:
        parts.append("validation " + " ".join(f"{n} {v:.4f}" for n, v in progress.metrics.items()))
    if progress.items_per_s:
        parts.append(f"{progress.items_per_s:,.0f} items/s")
    if progress.scale is not None:
        parts.append(f"scale {progress.scale:g}")
    if progress.held:
        parts.append(f"held {progress.held}")
    return "  ".join(parts)
