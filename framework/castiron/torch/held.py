"""A step that was held: whether that was expected, what is to blame, and what the policy says to it.

Shared by the bare loop's transaction and by whatever else drives a guard; knows no trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from castiron.diagnostics import ConfigError, Finding, NumericIncident, Place, finding
from castiron.policy import Plan
from castiron.policy.sections import DynamicScaling, GuardSection
from castiron.torch.guard import Verdict
from castiron.torch.incidents import incident_of, store
from castiron.torch.replay import ReplayStep, attribute
from castiron.torch.scaling import Scaler
from castiron.training.incident import Attribution, BadRow, Incident
from castiron.training.responses import Responses

Origin = Callable[[int], str]
"""Row number of a batch's `row` field → `file:line`."""
_SHOWN = 3


def is_expected(verdict: Verdict, scaler: Scaler) -> bool:
    """Whether it is what calibrating a loss scale looks like: gradients overflowed, all else is finite, and
    the scale can still fall. Waits for the device where the verdict is bad."""
    scaling = getattr(scaler, "scaling", None)
    if not verdict.gradients_only or not isinstance(scaling, DynamicScaling):
        return False
    return scaler.get_scale() > scaling.min


class HeldSteps:
    """The held steps of one bare loop: replayed, recorded, and responded to.

    Args:
        plan: the plan in force; its policy's `guard` section counts.
        origin: row number to a place in a file.
        folder: where incidents are kept; None: nowhere.

    Raises:
        ConfigError: the response needs more than a loop (X815).
    """

    def __init__(self, plan: Plan, origin: Origin | None = None, folder: str | Path | None = None) -> None:
        check_response(plan.policy.guard)
        self._plan, self._origin = plan, origin
        self._folder = None if folder is None else Path(folder)
        self.responses = Responses(plan.policy.guard)
        self.incidents: list[Incident] = []
        """One for each held step."""

    def respond(self, step: ReplayStep, committed: int, scale: Finding | None = None) -> Finding:
        """Replay a held step, record what is to blame, and do what the policy says.

        Args:
            step: parameters, buffers and generators are as they were before it.
            committed: optimizer steps applied before it.
            scale: what the loss scaler has to say; S401 ends training whatever the response.

        Returns:
            What is to blame, where training goes on.

        Raises:
            NumericIncident: the response is to raise, the budget is spent (N510), or the loss scale stands at
                its floor (S401).
        """
        attribution = attribute(step)
        decision = self.responses.decide(committed, attribution)
        before = [*([scale] if scale is not None and scale.severity == "error" else []), *decision.findings]
        response = "raise" if before else decision.response
        incident = incident_of(
            attribution, step=committed, epoch=0, policy=step.policy, verdict=step.verdict,
            response=response, origin=self._origin,
        )  # fmt: skip
        self.incidents.append(incident)
        path = None
        if self._folder is not None:
            path = store(incident, step, self._folder, kind="loop", plan=self._plan)
        watch = self._plan.policy.guard.watch
        found = describe_held(step.verdict, committed, watch, incident=incident)
        if response == "raise":
            raise NumericIncident([*before, found], incident=incident, path=path)
        return found


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


def describe_held(
    verdict: Verdict,
    step: int,
    watch: Sequence[str],
    *,
    rows: str = "",
    incident: Incident | Attribution | None = None,
) -> Finding:
    """What there is to say of a held step: what replay found to blame, else what the guard saw (N500).

    Args:
        step: optimizer steps committed before it.
        watch: the policy's `guard.watch`.
        rows: the rows of the batch, as `rows_of` gives them; an incident has those to blame.
        incident: what replay found.
    """
    seen = "; ".join(f"{what} ({listed(names)})" if names else what for what, names in verdict.seen.items())
    held = f"the step after {step:,} committed ones is not finite, and was not applied"
    evidence: dict[str, Any] = {
        "seen": {what: list(names) for what, names in verdict.seen.items()},
        "micro_batches": list(verdict.micro_batches),
        "step": step,
    }
    if incident is None:
        return finding(
            "N500",
            held[0].upper() + held[1:] + (f"; its rows: {rows}" if rows else ""),
            place=Place(phase="forward" if "loss" in verdict.seen else "backward"),
            expected=f"finite {', '.join(watch)}",
            received=f"NaN or infinity in {seen}",
            **evidence,
        )
    producer, source = incident.producer, incident.producer.source
    if blamed := [_row(r) for r in incident.rows]:
        held += f"; because of {listed(blamed)}"
    return finding(
        incident.code,
        f"{incident.message.rstrip('.')}: {held}",
        place=Place(
            file=source.file if source else None,
            line=source.line if source else None,
            module=producer.module,
            op=producer.op,
            phase=incident.phase,
        ),
        expected=f"finite {', '.join(watch)}",
        received=f"NaN or infinity in {seen}",
        remedy=incident.remedy or None,
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
