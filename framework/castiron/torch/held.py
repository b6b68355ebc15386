"""A step that was held: whether that was expected, what is to blame, and what the policy says to it.

Shared by the bare loop's transaction and by whatever else drives a guard; knows no trainer.
"""

from __future__ import annotations

from pathlib import Path

from castiron.diagnostics import ConfigError, Finding, NumericIncident, Place, finding
from castiron.policy import Plan
from castiron.policy.sections import DynamicScaling, GuardSection
from castiron.torch.incidents import store
from castiron.torch.replay import ReplayStep, attribute
from castiron.torch.scaling import Scaler
from castiron.training.held import Origin, Verdict, describe_held, incident_of, stored, told_unstored
from castiron.training.incident import Incident
from castiron.training.responses import Responses


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
        path, folder = None, self._folder
        problems: tuple[Finding, ...] = ()
        if folder is not None:
            path, problems = stored(lambda: store(incident, step, folder, kind="loop", plan=self._plan))
        watch = self._plan.policy.guard.watch
        found = told_unstored(describe_held(step.verdict, committed, watch, incident=incident), problems)
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
