"""A step that was held: whether that was expected, what is to blame, and how often it is put up with.

Shared by the bare loop's transaction and by whatever else drives a guard; knows no trainer.
"""

from __future__ import annotations

import importlib
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import castiron
from castiron.diagnostics import ConfigError, Finding, NumericIncident, Place, finding
from castiron.policy import PrecisionPolicy
from castiron.policy.sections import DynamicScaling, GuardSection
from castiron.torch.guard import Verdict
from castiron.torch.replay.step import ReplayStep
from castiron.torch.scaling import Scaler
from castiron.training.incident import Attribution, BadRow, Incident

Origin = Callable[[int], str]
"""Row number of a batch's `row` field → its place in a file."""
_SHOWN = 3


def is_expected(verdict: Verdict, scaler: Scaler) -> bool:
    """Whether it is what calibrating a loss scale looks like: gradients overflowed, all else is finite, and
    the scale can still fall. Waits for the device where the verdict is bad."""
    scaling = getattr(scaler, "scaling", None)
    if not verdict.gradients_only or not isinstance(scaling, DynamicScaling):
        return False
    return scaler.get_scale() > scaling.min


class HeldSteps:
    """The responses to held steps, of one training.

    Args:
        policy: whose `guard` section counts.
        origin: row number to a place in a file.
        incidents: a folder for the records; None: none are written.

    Raises:
        ConfigError: the response is one that is not known here (X815).
    """

    def __init__(
        self, policy: PrecisionPolicy, origin: Origin | None = None, incidents: str | Path | None = None
    ) -> None:
        self._policy, self._origin = policy, origin
        self._folder = None if incidents is None else Path(incidents)
        check_response(policy.guard)
        self._budget = HoldBudget(policy.guard)
        self.incidents: list[Incident] = []
        """One for each held step."""

    @property
    def count(self) -> int:
        """Steps held so far."""
        return len(self.incidents)

    def respond(self, step: ReplayStep, committed: int, tried: int, scale: Finding | None = None) -> Finding:
        """Replay a held step, record what is to blame, and do what the policy says.

        Args:
            step: parameters, buffers and generators are as they were before it.
            committed: optimizer steps applied before it.
            tried: number of the step among all that were tried.
            scale: what the loss scaler has to say; S401 ends training whatever the response.

        Returns:
            What is to blame, where training goes on.

        Raises:
            NumericIncident: the response is to raise, the budget is spent (N510), or the loss scale stands at
                its floor (S401).
        """
        guard = self._policy.guard
        # Replay is needed by those alone whose steps fail.
        attribution: Attribution = importlib.import_module("castiron.torch.replay").attribute(step)
        rows = rows_of(step.batches, step.verdict, self._origin)
        found = describe_held(step.verdict, committed, guard.watch, rows=rows, attribution=attribution)
        spent = None if guard.response == "raise" else self._budget.spend(tried)
        ends = [f for f in (scale if scale and scale.severity == "error" else None, spent) if f is not None]
        response = "raise" if ends else guard.response
        incident = make_incident(attribution, step.verdict, committed, str(self._policy), response)
        self.incidents.append(incident)
        path = None if self._folder is None else _write(self._folder, incident)
        if response == "raise":
            raise NumericIncident([*ends, found], incident=incident, path=path)
        return found


def make_incident(
    attribution: Attribution, verdict: Verdict, step: int, policy: str, response: str, *, epoch: int = 0
) -> Incident:
    """The record of a held step."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return Incident(
        **attribution.model_dump(),
        step=step,
        epoch=epoch,
        rank=torch.distributed.get_rank() if distributed else 0,
        policy=policy,
        seen={what: list(names) for what, names in verdict.seen.items()},
        response=response,
        castiron=castiron.__version__,
        versions={"torch": torch.__version__},
    )


def check_response(section: GuardSection) -> None:
    """Refuse what a loop without checkpoints does not do, rather than not do it."""
    if section.response not in ("raise", "hold"):
        raise ConfigError(
            finding(
                "X815",
                "A bare loop does not do that.",
                place=Place(key="guard.response"),
                expected="raise, hold",
                received=section.response,
                remedy="Choose one of those, or train with castiron.lightning.Trainer.",
            )
        )


def _write(folder: Path, incident: Incident) -> Path:
    """`incident.json` in a folder of its own, complete or not at all."""
    path, number = folder / f"step-{incident.step}", 1
    while path.exists():
        number += 1
        path = folder / f"step-{incident.step}-{number}"
    path.mkdir(parents=True)
    part = path / "incident.json.part"
    part.write_text(incident.model_dump_json(indent=2) + "\n", encoding="utf-8")
    os.replace(part, path / "incident.json")
    return path


class HoldBudget:
    """Counts held steps against the policy's `guard.budget`."""

    def __init__(self, section: GuardSection) -> None:
        self._budget = section.budget
        self._recent: deque[int] = deque()

    def spend(self, step: int) -> Finding | None:
        """One more step is held. N510 where that is more than the budget allows, else None.

        Args:
            step: number of the step among all that were tried, held ones too.
        """
        budget = self._budget
        self._recent.append(step)
        while self._recent[0] <= step - budget.window:
            self._recent.popleft()
        if len(self._recent) <= budget.holds:
            return None
        return finding(
            "N510",
            "",
            place=Place(key="guard.budget"),
            expected=f"at most {budget.holds} held steps in {budget.window}",
            received=f"{len(self._recent)} in the last {min(budget.window, step)}",
        )


def describe_held(
    verdict: Verdict,
    step: int,
    watch: Sequence[str],
    *,
    rows: str = "",
    attribution: Attribution | None = None,
) -> Finding:
    """What there is to say of a held step: what replay found to blame, else what the guard saw.

    Args:
        step: optimizer steps committed before it.
        watch: the policy's `guard.watch`.
        rows: the rows of the batch, as `rows_of` gives them.
    """
    seen = "; ".join(f"{what} ({listed(names)})" if names else what for what, names in verdict.seen.items())
    held = f"the step after {step:,} committed ones is not finite, and was not applied"
    evidence: dict[str, Any] = {
        "seen": {what: list(names) for what, names in verdict.seen.items()},
        "micro_batches": list(verdict.micro_batches),
        "step": step,
    }
    if attribution is None:
        return finding(
            "N500",
            held[0].upper() + held[1:] + (f"; its rows: {rows}" if rows else ""),
            place=Place(phase="forward" if "loss" in verdict.seen else "backward"),
            expected=f"finite {', '.join(watch)}",
            received=f"NaN or infinity in {seen}",
            **evidence,
        )
    producer = attribution.producer
    if blamed := [_row(r) for r in attribution.rows]:
        held += f"; because of {listed(blamed)}"
    return finding(
        attribution.code,
        f"{attribution.message.rstrip('.')}: {held}",
        place=Place(
            file=producer.source.file if producer.source else None,
            line=producer.source.line if producer.source else None,
            module=producer.module,
            op=producer.op,
            phase=attribution.phase,
        ),
        expected=f"finite {', '.join(watch)}",
        received=f"NaN or infinity in {seen}",
        remedy=attribution.remedy or None,
        attribution=attribution.model_dump(mode="json"),
        **evidence,
    )


def rows_of(batches: Sequence[Any], verdict: Verdict, origin: Origin | None = None) -> str:
    """The rows of the batches to blame, as far as batches carry them; empty where they do not."""
    # Manual optimization may take several losses of one batch.
    chosen = [b for i, b in enumerate(batches) if i in verdict.micro_batches] or batches
    rows = [int(r) for b in chosen if isinstance(b, Mapping) and "row" in b for r in b["row"].tolist()]
    if not rows:
        return ""
    return listed([origin(r) if origin else str(r) for r in rows[:_SHOWN]], len(rows))


def listed(names: Sequence[str], total: int | None = None) -> str:
    """The first names, and how many more there are."""
    total = len(names) if total is None else total
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {total - _SHOWN} more" if total > _SHOWN else shown


def _row(row: BadRow) -> str:
    if row.file is not None:
        return f"{row.file}:{row.line}" if row.line is not None else row.file
    return f"row {row.row}" if row.row is not None else f"row {row.index} of the batch"
