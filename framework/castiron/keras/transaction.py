"""A training step that is applied whole or not at all, in one compiled function.

with transaction(model, optimizer, "bf16-mixed", clip_norm=1.0) as step:
    for batch in batches:
        outcome = step(loss_of, batch)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tensorflow as tf

from castiron.diagnostics import Finding
from castiron.keras.capability import device_capability
from castiron.keras.health.loop import LoopHealth, learning_rate
from castiron.keras.health.watch import Watch
from castiron.keras.held import HeldSteps
from castiron.keras.inputs import cast_inputs
from castiron.keras.modules import describe
from castiron.keras.precision import Precision, apply
from castiron.keras.scaling import make_scaler
from castiron.keras.step import Forward, StepCore
from castiron.keras.switches import matmul_switches
from castiron.keras.updates import Updates
from castiron.policy import Plan, PrecisionPolicy, resolve
from castiron.training.held import Origin, Verdict

LossOf = Callable[[Any], Any]
"""Batch → scalar loss: forward pass and loss, nothing else. Traced: give the same function each time."""


@contextlib.contextmanager
def transaction(
    model: Any,
    optimizer: Any,
    policy: PrecisionPolicy | str | Mapping[str, Any] = "float32",
    *,
    clip_norm: float | None = None,
    jit_compile: bool = False,
    origin: Origin | None = None,
    incidents: str | Path | None = None,
    health: bool | str | Path = False,
    seed: int = 0,
) -> Iterator[Transaction]:
    """Within it, `step(loss_of, batch)` is a whole training step under a policy, or nothing.

    The policy is resolved against the model and its device, and applied; the switches of matrix products are
    put back at the end. A step casts its inputs, runs forward, loss and backward in the declared formats,
    scales and unscales, looks at losses, gradients (before clipping) and what else `guard.watch` says, clips,
    and steps the optimizer, all in one compiled function. A step that is not finite is held: parameters,
    optimizer state, statistics, recurrent states and seeds are as before it, bit for bit; what is to blame is
    found by replay, and the policy's `guard.response` follows.

    Args:
        model: a built Keras model.
        optimizer: a Keras optimizer that has not been built.
        policy: a policy, a preset's name, a short string, or a mapping.
        clip_norm: largest global norm of the gradients.
        jit_compile: compile with XLA.
        origin: row number of a batch's `row` field to a place in a file, for messages.
        incidents: a folder; each held step is written there as `step-N/`.
        health: True measures the first step and every `health.every`-th, and `findings` has the advice; a
            folder: what was measured is kept there as well.
        seed: of stochastic rounding.

    Raises:
        PlanError, HardwareError: the policy does not fit the model, or the device.
        ConfigError: the response, or what is watched, is something this loop does not have (X815).
        NumericIncident: from a step; it was held and the response says so, the budget of held steps is spent
            (N510), or the loss scale stands at its floor (S401).
    """
    given = PrecisionPolicy.model_validate(policy)
    with matmul_switches(given.matmul):
        step = Transaction(model, optimizer, given, clip_norm, jit_compile, origin, incidents, seed)
        if health is False:
            yield step
            return
        step.health = LoopHealth(step.core, given, step.findings.extend)
        with contextlib.nullcontext() if health is True else step.health.kept_in(health, 0):
            yield step


@dataclass(slots=True)
class StepOutcome:
    """What became of a step."""

    loss: Any
    """The loss: mean over the micro-batches."""
    committed: bool
    """Whether the step was applied."""
    verdict: Verdict = field(default_factory=lambda: Verdict(False))
    """What the guard saw."""
    skipped: str | None = None
    """Why an expected overflow was held; None otherwise."""
    finding: Finding | None = None
    """What is to blame where the step was held for more than that."""


class Transaction:
    """`step` of a `transaction`: call it with a loss and a batch. Made by `transaction`."""

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        policy: PrecisionPolicy,
        clip_norm: float | None,
        jit_compile: bool,
        origin: Origin | None,
        incidents: str | Path | None,
        seed: int,
    ) -> None:
        plan, notes = resolve(policy, describe(model), device_capability())
        precision: Precision = apply(model, plan)
        self.plan: Plan = plan
        """The policy, resolved against this model and device."""
        self.findings: list[Finding] = [*notes, *precision.findings]
        """What there is to say that does not stop training: of the plan, and of held steps."""
        updates = Updates(optimizer, model.trainable_variables, policy, seed=seed)
        self.scaler = make_scaler(policy.scaling)
        self.core = StepCore(model, updates, policy, self.scaler, clip_norm=clip_norm)
        self.core.jit_compile = jit_compile
        self._policy, self._jit = policy, jit_compile
        self._held = HeldSteps(self.core, plan, origin, incidents)
        self.health: LoopHealth | None = None
        """What is measured, where something is."""
        self._compiled: dict[tuple[Any, bool, Watch | None], Any] = {}
        self._tried = 0
        self.committed = 0
        """Steps that were applied."""
        self.overflows = 0
        """Steps held because gradients overflowed while the loss scale could still fall."""

    @property
    def held(self) -> int:
        """Steps held so far, expected overflows not among them."""
        return len(self._held.incidents)

    @property
    def incidents(self) -> list[Any]:
        """The records of the held steps, expected overflows not among them."""
        return self._held.incidents

    def __call__(self, loss_of: LossOf, *batches: Any) -> StepOutcome:
        """One step.

        Args:
            loss_of: batch → scalar loss; traced once, so give the same function each time.
            batches: the micro-batches of this step, one or more; gradients are their mean.

        Raises:
            NumericIncident: see `transaction`. Nothing of the step was applied.
        """
        if not batches:
            raise ValueError("Expected one batch or more. Received none.")
        cast = [tf.nest.map_structure(tf.convert_to_tensor, cast_inputs(b, self._policy)) for b in batches]
        self._tried += 1
        every = self._policy.guard.every
        watched = every == 1 or self._tried % every == 1
        watch = None if self.health is None else self.health.watch(self.core, self.committed)
        rate = 0.0 if watch is None else learning_rate(self.core)
        result = self._function(loss_of, watched, watch)(cast)
        outcome = StepOutcome(result["loss"], bool(result["committed"]))
        if outcome.committed:
            self.committed += 1
            if self.health is not None and watch is not None:
                self.health.committed(watch, result["health"], self.committed, rate, self.held)
            return outcome
        if self.health is not None:
            self.health.held(self.committed)
        verdict = outcome.verdict = self.core.verdict(result["flagged"], len(batches))
        scale = self.scaler.check() if verdict.gradients_only else None
        if self.core.is_expected(verdict, result["calibrating"]):
            self.overflows += 1
            outcome.skipped = f"gradients overflowed; the loss scale is now {self.scaler.get_scale():g}"
            return outcome
        outcome.finding = self._held.respond(_forward(loss_of), cast, verdict, self.committed, scale)
        self.findings.append(outcome.finding)
        return outcome

    def _function(self, loss_of: LossOf, watched: bool, watch: Watch | None) -> Any:
        key = (loss_of, watched, watch)
        if key not in self._compiled:

            def step(batches: list[Any]) -> dict[str, Any]:
                with contextlib.nullcontext() if watch is None else watch.tracing():
                    result = self.core.run(_forward(loss_of), batches, watched=watched)
                return {
                    "health": {} if watch is None else watch.outputs(),
                    "loss": result.loss,
                    "committed": result.committed,
                    "flagged": result.flagged,
                    "calibrating": result.calibrating,
                }

            self._compiled[key] = tf.function(
                step, jit_compile=self._jit or None, reduce_retracing=True, autograph=False
            )
        return self._compiled[key]


def _forward(loss_of: LossOf) -> Forward:
    return lambda batch: (loss_of(batch), None)
