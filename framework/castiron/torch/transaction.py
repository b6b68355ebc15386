"""A step of a bare loop that is applied whole or not at all.

with transaction(model, optimizer, "float32", schedulers=[schedule], clip_norm=1.0) as step:
    for batch in loader:
        outcome = step(lambda batch: F.mse_loss(model(batch["x"]), batch["y"]), batch)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from castiron.diagnostics import Finding
from castiron.policy import Plan, PrecisionPolicy, resolve
from castiron.torch.attempt import Attempt, Losses, Result, StepOutcome, Turn
from castiron.torch.capability import device_capability
from castiron.torch.guard import COMPUTED
from castiron.torch.held import HeldSteps, check_response, is_expected
from castiron.torch.inputs import InputCast
from castiron.torch.late import LateVerdict, can_be_late
from castiron.torch.modules import describe
from castiron.torch.precision import apply
from castiron.torch.replay import ReplayStep
from castiron.torch.scaling import Scaler, make_scaler, step_unless
from castiron.torch.snapshot import Snapshot
from castiron.torch.step import StepCore
from castiron.torch.switches import matmul_switches
from castiron.torch.updates import guard_updates
from castiron.training.held import Origin, Verdict
from castiron.training.incident import Incident


@contextlib.contextmanager
def transaction(
    model: nn.Module,
    optimizers: Optimizer | Sequence[Optimizer],
    policy: PrecisionPolicy | str | Mapping[str, Any] = "float32",
    *,
    schedulers: Sequence[Any] = (),
    averages: Sequence[Any] = (),
    clip_norm: float | None = None,
    scaler: Scaler | None = None,
    origin: Origin | None = None,
    incidents: str | Path | None = None,
    late: bool | None = None,
) -> Iterator[Transaction]:
    """Within it, `step(loss_of, batch)` is a whole training step under a policy, or nothing.

    The policy is resolved against the model and its device, and applied; the switches of matrix products are
    put back at the end. A step casts its inputs, runs forward, loss and backward in the declared formats,
    scales and unscales, looks at losses, gradients (before clipping) and what else `guard.watch` says, clips,
    steps the optimizers, then the schedules, then the averages. A step that is not finite is held: all of
    these, buffers, torch's random generators and the states of metrics inside the model are as before it,
    bit for bit; what is to blame is found by replay, and the policy's `guard.response` follows.

    Args:
        model: holds all that is trained, on its device. Wrap it in `torch.compile` where you like, and call
            what you wrapped in `loss_of`.
        optimizers: of this model's parameters; they share one decision.
        policy: a policy, a preset's name, a short string, or a mapping.
        schedulers: stepped after every committed step.
        averages: their `update()` (or `update_parameters(model)`) is called after every committed step.
        clip_norm: largest global norm of an optimizer's gradients.
        scaler: of the loss; None: what the policy declares.
        origin: row number of a batch's `row` field to a place in a file, for messages.
        incidents: a folder; each held step is written there as `step-N/`, with `incident.json` and all that
            it takes to run the step again.
        late: whether the host asks for a step's verdict during the next one, which then waits for nothing.
            None: where the model is on a CUDA device and all optimizers are fused.

    Raises:
        PlanError, HardwareError: the policy does not fit the model, or the device.
        ConfigError: the response is one that this loop does not have (X815).
        ValueError: `late`, and an optimizer cannot take a verdict on the device.
        NumericIncident: from a step or at the end; a step was held and the response says so, the budget of
            held steps is spent (N510), or the loss scale stands at its floor (S401).
    """
    given = PrecisionPolicy.model_validate(policy)
    several = (optimizers,) if isinstance(optimizers, Optimizer) else tuple(optimizers)
    with matmul_switches(given.matmul):
        step = Transaction(
            model, several, given, origin, incidents, tuple(schedulers), tuple(averages), clip_norm,
            scaler or make_scaler(given.scaling), late,
        )  # fmt: skip
        try:
            yield step
            step.settle()
        finally:
            step.close()


class Transaction:
    """`step` of a `transaction`: call it with a loss and a batch. Made by `transaction`."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: tuple[Optimizer, ...],
        policy: PrecisionPolicy,
        origin: Origin | None,
        incidents: str | Path | None,
        schedulers: tuple[Any, ...],
        averages: tuple[Any, ...],
        clip_norm: float | None,
        scaler: Scaler,
        late: bool | None,
    ) -> None:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            raise ValueError(
                "Expected a model of one process: ranks would each decide alone. Received a "
                "DistributedDataParallel; castiron.lightning.Trainer decides for all of them."
            )
        self._root: nn.Module = getattr(model, "_orig_mod", model)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        check_response(policy.guard)
        plan, notes = resolve(policy, describe(self._root), device_capability(device))
        precision = apply(self._root, plan)
        self.plan: Plan = plan
        """The policy, resolved against this model and device."""
        self.findings: list[Finding] = [*notes, *precision.findings]
        """What there is to say that does not stop training: of the plan, and of held steps."""
        for optimizer in optimizers:
            guard_updates(optimizer, policy)
        self._optimizers, self._policy, self._scaler = optimizers, policy, scaler
        self._cast = InputCast(policy)
        self._responses = HeldSteps(plan, origin, incidents)
        self._averages = averages
        self._core = StepCore(
            self._root, precision, policy, device, optimizers, scaler,
            schedules=schedulers, averages=averages, clip_norm=clip_norm, findings=self.findings,
        )  # fmt: skip
        self._guard = self._core.guard
        self._late = self._may_be_late(late)
        self._pending: Attempt | None = None
        self._tried = 0
        self.overflows = 0
        """Steps held because gradients overflowed while the loss scale could still fall."""

    @property
    def committed(self) -> int:
        """Steps that were applied, as far as is known."""
        return self._core.committed

    @property
    def held(self) -> int:
        """Steps held so far, expected overflows not among them."""
        return len(self._responses.incidents)

    @property
    def incidents(self) -> list[Incident]:
        """The records of the held steps, expected overflows not among them."""
        return self._responses.incidents

    def __call__(self, losses: Losses, *batches: Any) -> StepOutcome:
        """One step.

        Args:
            losses: `loss_of(batch)` → scalar loss, for all optimizers; or optimizer → its `loss_of`, which
                then step one after the other, in this order, and all or none.
            batches: the micro-batches of this step, one or more; gradients are their mean.

        Raises:
            NumericIncident: see `transaction`. Nothing of the step was applied.
        """
        turns = self._turns(losses)
        if not batches:
            raise ValueError("Expected one batch or more. Received none.")
        outcome = StepOutcome(self.settle)
        cast = [self._cast(batch) for batch in batches]
        snapshots = self._core.snapshots(len(turns), self._tried % 2 if self._late else 0)
        attempt = Attempt(turns, cast, snapshots, outcome)
        self._tried += 1
        every = self._policy.guard.every
        if every > 1 and self._tried % every != 1 and not self._scaler.active:
            self.settle()
            self._unwatched(attempt)
            return outcome
        # The first step makes the optimizers' states, and shows which modules hand on -inf on purpose.
        if not self._late or self._tried == 1 or not self._try_late(attempt):
            self._run(attempt)
        return outcome

    def settle(self) -> None:
        """Ask for a verdict that is still on the device, and act on it. Do so before you evaluate or save the
        model inside of the loop."""
        if self._pending is not None:
            self._confirm()

    def close(self) -> None:
        """The end: a step that is not settled is committed or undone, and nothing follows from it."""
        pending, self._pending = self._pending, None
        if pending is not None and pending.reading is not None:
            if pending.reading.read():
                pending.outcome.result = Result(False, Verdict(True))
                self._core.undo(pending)
            else:
                self._core.commit(pending)
        self._guard.release()

    # --- a step whose verdict is asked for at once -------------------------------------------------

    def _run(self, attempt: Attempt, *, suspected: bool = False) -> None:
        """Compute, judge, and apply or hold. `suspected`: a first run of it was bad, so that it is held even
        where this one is good."""
        attempt.snapshots[0].take()
        attempt.outcome.losses = ()
        verdict = Verdict(False)
        try:
            for number, turn in enumerate(attempt.turns):
                if number:
                    attempt.snapshots[number].take()
                self._core.compute(turn, attempt)
                last = suspected and turn is attempt.turns[-1]
                verdict = self._guard.verdict(COMPUTED)
                if last and not self._core.updated:
                    verdict = _as_suspected(verdict)
                if verdict.bad:
                    break
                self._core.clip(turn)
                for optimizer in turn.optimizers:
                    self._scaler.step(optimizer)
                if self._core.updated:
                    verdict = self._guard.verdict(self._core.updated)
                    verdict = _as_suspected(verdict) if last else verdict
                    if verdict.bad:
                        break
        except BaseException:
            self._core.undo(attempt)
            raise
        if verdict.bad:
            self._hold(attempt, number, verdict)
        else:
            self._scaler.update()
            self._core.commit(attempt)

    def _hold(self, attempt: Attempt, number: int, verdict: Verdict) -> None:
        """Nothing of the step stays; then the policy's response."""
        scale = self._scaler.get_scale()
        expected = is_expected(verdict, self._scaler)
        if verdict.gradients_only:
            self._scaler.update()  # how it falls is its own decision
        else:
            self._scaler.discard()
        found = self._scaler.check() if verdict.gradients_only else None
        self._core.drop_gradients()
        if expected:
            self.overflows += 1
            reason = f"gradients overflowed under a loss scale of {scale:g}"
            attempt.outcome.result = Result(False, verdict, skipped=reason)
            attempt.snapshots[0].restore()
            return
        attempt.outcome.result = Result(False, verdict)  # known also where the response is to raise
        turn, snapshot = attempt.turns[number], attempt.snapshots[number]
        snapshot.restore()
        replay = ReplayStep(
            root=self._root,
            batches=attempt.batches,
            run=lambda batch, _: self._core.again(turn, batch, scale / len(attempt.batches)),
            restore=snapshot.restore,
            verdict=verdict,
            optimizers=turn.optimizers,
            scale=scale,
            policy=str(self._policy),
        )
        try:
            blame = self._responses.respond(replay, self.committed, found)
        finally:
            self._core.drop_gradients()
            attempt.snapshots[0].restore()
        self.findings.append(blame)
        attempt.outcome.result = Result(False, verdict, finding=blame)

    def _unwatched(self, attempt: Attempt) -> None:
        """A step between two that the guard looks at (`guard.every`)."""
        for turn in attempt.turns:
            self._core.compute(turn, attempt)
            self._core.clip(turn)
            for optimizer in turn.optimizers:
                optimizer.step()
        self._core.commit(attempt)

    # --- a step whose verdict is asked for during the next one -------------------------------------

    def _try_late(self, attempt: Attempt) -> bool:
        """Queue the step; False where the one before turned out bad, and nothing of this one counts.

        The verdict stays on the device and keeps the fused optimizers from changing anything. No optimizer is
        started before the host has seen the verdict on the step before: that is the latch. By then this
        step's gradients are queued, so that the device has work while the host waits. What the host does
        after a step (schedules, averages) it does when the verdict is there.
        """
        attempt.snapshots[0].take()
        attempt.scale = [t.clone() for t in self._scaler.tensors(self._core.device)]
        bad: Tensor | None = None
        confirmed = True
        try:
            for number, turn in enumerate(attempt.turns):
                if number:
                    attempt.snapshots[number].take()
                self._core.compute(turn, attempt)
                bad = _either(bad, self._guard.flag(COMPUTED), self._scaler.found_inf)
                if self._pending is not None:
                    confirmed = False
                    if not self._confirm(attempt.snapshots[0]):
                        return False
                    confirmed = True
                    attempt.snapshots[0].take_settings()  # the schedules have moved since
                self._core.clip(turn)
                for optimizer in turn.optimizers:
                    step_unless(optimizer, bad)
                if self._core.updated:
                    bad = _either(bad, self._guard.flag(self._core.updated))
        except BaseException:
            if confirmed:  # else the state is already that from before the step before
                self._core.undo(attempt)
            raise
        assert bad is not None
        self._scaler.update()
        attempt.reading, self._pending = LateVerdict(bad), attempt
        return True

    def _confirm(self, since: Snapshot | None = None) -> bool:
        """Read the verdict on the step before: commit it, or go back to before it and run it again, now with
        all the names. False where it was bad: then what was computed since is void.

        Args:
            since: what was taken when it was over, where another forward pass has changed buffers since.
        """
        pending, self._pending = self._pending, None
        assert pending is not None
        assert pending.reading is not None
        if not pending.reading.read():
            # Averages take buffers in as they were after that step.
            averaging = since is not None and bool(self._averages)
            with since.buffers_as_taken() if averaging and since else contextlib.nullcontext():
                self._core.commit(pending)
            return True
        self._core.undo(pending)
        self._run(pending, suspected=True)
        return False

    # --- parts -------------------------------------------------------------------------------------

    def _turns(self, losses: Losses) -> list[Turn]:
        if not isinstance(losses, Mapping):
            return [Turn(self._optimizers, losses)]
        if set(losses) != set(self._optimizers):
            raise ValueError(
                f"Expected a loss for each of the {len(self._optimizers)} optimizers. "
                f"Received {len(losses)}, for {', '.join(type(o).__name__ for o in losses) or 'none'}."
            )
        return [Turn((optimizer,), loss_of) for optimizer, loss_of in losses.items()]

    def _may_be_late(self, late: bool | None) -> bool:
        possible = can_be_late(self._optimizers) and self._policy.guard.every == 1
        if late and not possible:
            raise ValueError(
                "Expected fused optimizers without stochastic rounding, and guard.every 1, for a late "
                f"verdict. Received {', '.join(type(o).__name__ for o in self._optimizers)}."
            )
        return possible and self._core.device.type == "cuda" if late is None else late


def _as_suspected(verdict: Verdict) -> Verdict:
    """Bad even where nothing is bad any more."""
    return verdict if verdict.bad else Verdict(True, {"a first run of this step": ()})


def _either(*flags: Tensor | None) -> Tensor:
    """1.0 where one of these is."""
    given = [f for f in flags if f is not None]
    found = given[0]
    for flag in given[1:]:
        found = torch.maximum(found, flag.to(found.device, non_blocking=True))
    return found
