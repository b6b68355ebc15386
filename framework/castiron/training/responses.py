"""What follows a step that was held, by policy. Pure bookkeeping; whoever drives the training does it.

raise stops training. hold goes on without the step. rollback, lower-lr and promote go on too, and change
something first: the weights, the learning rate, the format of the layer that made the fault. Each has a limit
of its own, and all of them together have the budget of held steps within a window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from castiron.diagnostics import Finding, Place, finding
from castiron.formats import is_wider
from castiron.policy import PrecisionPolicy
from castiron.policy.sections import GuardResponse, GuardSection
from castiron.training.incident import Attribution, Incident

_WIDE = ("float32", "float64")


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done now that a step is held."""

    response: GuardResponse
    why: str = ""
    """Why it is not the policy's own response; empty where it is."""
    findings: tuple[Finding, ...] = ()
    """With `raise`: what to say before the incident itself."""
    steps: int | None = None
    """With `rollback`: how old the checkpoint is to be at least, in steps."""
    factor: float | None = None
    """With `lower-lr`: of the learning rates."""
    module: str | None = None
    """With `promote`: the layer that is to compute in float32."""


@dataclass
class Responses:
    """Decides after each held step, and counts.

    Expected overflows of a dynamic loss scale are none of its business: do not ask it then.
    """

    section: GuardSection
    held: int = 0
    """Steps held so far."""
    carried_out: dict[str, int] = field(default_factory=dict)
    """Response → how often it was decided; `raise` and `hold` are not counted."""
    promoted: list[str] = field(default_factory=list)
    """Layers promoted so far."""
    _recent: deque[int] = field(default_factory=deque)
    _repeated: int = 0

    def decide(
        self,
        step: int,
        found: Attribution | Incident | None = None,
        *,
        compute: Mapping[str, str] | None = None,
    ) -> Decision:
        """What is to be done about a step that was just held.

        Args:
            step: optimizer steps committed so far.
            found: what replay found; None where the step was not replayed.
            compute: layer → format it computes in, by the plan as it is now; to promote.
        """
        self.held += 1
        response, budget = self.section.response, self.section.budget
        if response == "raise":
            return Decision("raise")
        tried = step + self.held + self._repeated
        self._recent.append(tried)
        while self._recent[0] <= tried - budget.window:
            self._recent.popleft()
        if len(self._recent) > budget.holds:
            return Decision("raise", "the budget of held steps is spent", (self._budget_spent(tried),))
        if response == "hold":
            return Decision("hold")
        if why := self._no_help(response, found, compute):
            return Decision("hold", why)
        limit = getattr(self.section, response.replace("-", "_")).limit
        if self.carried_out.get(response, 0) >= limit:
            return Decision("raise", "the limit of the response is spent", (_limit_spent(response, limit),))
        self.carried_out[response] = self.carried_out.get(response, 0) + 1
        if response == "rollback":
            return Decision("rollback", steps=self.section.rollback.steps)
        if response == "lower-lr":
            return Decision("lower-lr", factor=self.section.lower_lr.factor)
        module = found.producer.module if found is not None else None
        assert module is not None  # or promoting would not have been a help
        self.promoted.append(module)
        return Decision("promote", module=module)

    def went_back(self, steps: int) -> None:
        """A rollback took training so many steps back; these are taken again, and count again in windows."""
        self._repeated += steps

    def state_dict(self) -> dict[str, Any]:
        """The counts, JSON-ready; a resumed run goes on with them."""
        return {
            "held": self.held,
            "carried_out": dict(self.carried_out),
            "promoted": list(self.promoted),
            "recent": list(self._recent),
            "repeated": self._repeated,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.held = state["held"]
        self.carried_out = dict(state["carried_out"])
        self.promoted = list(state["promoted"])
        self._recent = deque(state["recent"])
        self._repeated = state["repeated"]

    def _no_help(
        self, response: str, found: Attribution | Incident | None, compute: Mapping[str, str] | None
    ) -> str:
        """Why this response cannot help against what was found; empty where it may."""
        if found is not None and "data" in (found.phase, found.event):
            return "the data are to blame, not the training"
        if response != "promote":
            return ""
        module = found.producer.module if found is not None else None
        if module is None:
            return "no layer is to blame"
        if module in self.promoted:
            return f"{_layer(module)} was promoted already"
        formats = compute or {}
        if module not in formats:
            return f"the plan has no format for {_layer(module)}"
        if formats[module] in _WIDE:
            return f"{_layer(module)} computes in {formats[module]} already"
        return ""

    def _budget_spent(self, tried: int) -> Finding:
        budget = self.section.budget
        return finding(
            "N510",
            "",
            place=Place(key="guard.budget"),
            expected=f"at most {budget.holds} held steps in {budget.window}",
            received=f"{len(self._recent)} in the last {min(budget.window, tried)}",
        )


def promoted(policy: PrecisionPolicy, layer: str) -> PrecisionPolicy:
    """The policy with a layer (a path or a glob) computing in float32; its parameters too, where they are
    narrower, as a layer cannot compute wider than it stores."""
    layers: dict[str, dict[str, Any]] = {k: r.model_dump(exclude_none=True) for k, r in policy.layers.items()}
    rule = {**layers.pop(layer, {}), "compute": "float32", "output": "float32"}
    if is_wider("float32", rule.get("param", policy.param)):
        rule["param"] = "float32"
    return policy.replace(layers={**layers, layer: rule})


def _limit_spent(response: str, limit: int) -> Finding:
    times = "once" if limit == 1 else f"{limit} times"
    return finding(
        "N516",
        f"The step was bad although the response '{response}' had been carried out {times}.",
        place=Place(key=f"guard.{response.replace('-', '_')}.limit"),
        expected=f"no bad step after {limit}",
        received="one more",
    )


def _layer(module: str) -> str:
    return f"layer '{module}'" if module else "the model itself"
