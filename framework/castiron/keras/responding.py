"""What a response to a held step does to a live training: go back, lower the rate, widen a layer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import keras

from castiron.diagnostics import ConfigError, Place, finding
from castiron.policy import Plan
from castiron.policy.sections import GuardSection
from castiron.training.responses import Decision

Restore = Callable[[], None]
"""Puts a training back to a state that was kept."""


class Actions(Protocol):
    """What whoever drives a training can do to it."""

    def go_back(self, at_least: int) -> int:
        """Back to a state at least so many steps old, or the oldest there is. → how many steps."""

    def lower_learning_rate(self, factor: float) -> None:
        """Multiply the learning rate, now and in what a schedule makes of it later."""

    def promote(self, layer: str) -> Plan:
        """Let a layer compute in float32 from here on. → the plan in force now.

        Raises:
            PlanError: the plan does not allow it.
        """


class RollbackPoints:
    """States that a rollback may go back to: one every so many steps, the latest three.

    Args:
        steps: optimizer steps between two of them.
        keep: keeps the present state. → what goes back to it, and what lets go of it.
    """

    def __init__(self, steps: int, keep: Callable[[int], tuple[Restore, Restore]]) -> None:
        self._steps, self._keep = steps, keep
        self._points: deque[tuple[int, Restore, Restore]] = deque()

    def keep(self, step: int) -> None:
        """Keep the present state where one is due. Call it between steps."""
        if step % self._steps and self._points:
            return
        if self._points and self._points[-1][0] == step:
            return
        self._points.append((step, *self._keep(step)))
        if len(self._points) > 3:
            self._points.popleft()[2]()

    def go_back(self, now: int, at_least: int) -> int:
        """Go back to the latest state that is at least so many steps old, or to the oldest there is.

        → how many steps back that is.
        """
        while len(self._points) > 1 and now - self._points[-1][0] < at_least:
            self._points.pop()[2]()
        step, restore, _ = self._points[-1]
        restore()
        return now - step

    def clear(self) -> None:
        """Training is over, or what was kept fits no more."""
        while self._points:
            self._points.pop()[2]()


def carry_out(actions: Actions, decision: Decision) -> tuple[int, Plan | None]:
    """Do what was decided. → steps gone back, and the plan where it changed."""
    if decision.response == "rollback":
        assert decision.steps is not None
        return actions.go_back(decision.steps), None
    if decision.response == "lower-lr":
        assert decision.factor is not None
        actions.lower_learning_rate(decision.factor)
    elif decision.response == "promote":
        assert decision.module is not None
        return 0, actions.promote(decision.module)
    return 0, None


def check_response(section: GuardSection, actions: Actions | None) -> None:
    """Refuse what a loop without more than its steps does not do, rather than not do it (X815)."""
    if actions is None and section.response not in ("raise", "hold"):
        raise ConfigError(
            finding(
                "X815",
                "A bare loop does not do that.",
                place=Place(key="guard.response"),
                expected="raise, hold",
                received=section.response,
                remedy="Choose one of those, or train with castiron.keras.enforce and model.fit.",
            )
        )


def check_rate(section: GuardSection, optimizer: Any) -> None:
    """Refuse to be asked to lower a rate that a schedule of the optimizer's own makes (X815)."""
    if section.response == "lower-lr" and isinstance(
        optimizer._learning_rate, keras.optimizers.schedules.LearningRateSchedule
    ):
        raise ConfigError(
            finding(
                "X815",
                "The learning rate is a schedule of the optimizer's own, which cannot be lowered.",
                place=Place(key="guard.response"),
                expected="a number, and the callback LearningRateScheduler where it is to change",
                received=type(optimizer._learning_rate).__name__,
                remedy="Give the optimizer a number, or choose another response.",
            )
        )
