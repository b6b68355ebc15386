"""Steps that are not finite are held: nothing of them is applied. For any Lightning trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.optim import Optimizer

from castiron.diagnostics import ConfigError, Finding, NumericIncident, Place, finding
from castiron.lightning.agreement import agreed, agreed_flag, first_rank, suspected, told, told_stored
from castiron.lightning.counts import counts, logged, put_back, unlog
from castiron.lightning.held_step import can_replay, replay_step
from castiron.lightning.incidents import incident_of, store
from castiron.lightning.logger import RunLogger
from castiron.lightning.module import RecipeModule
from castiron.lightning.precision import PrecisionPlugin
from castiron.lightning.responding import RollbackPoints, lower_learning_rate, promote
from castiron.policy import Plan, PrecisionPolicy
from castiron.torch.guard import COMPUTED, UPDATED, StepGuard
from castiron.torch.late import LateVerdict, can_be_late
from castiron.torch.replay import attribute
from castiron.torch.replay.step import ReplayStep
from castiron.torch.scaling import forget_verdict, give_verdict
from castiron.torch.snapshot import Snapshot, drop_gradients
from castiron.training.held import Origin, Verdict, describe_held, rows_of, stored, told_unstored
from castiron.training.incident import Attribution, Incident
from castiron.training.responses import Decision, Responses
from castiron.training.run_directory import CHECKPOINTS, INCIDENTS

OnIncident = Callable[[Incident, Finding, Path | None], None]
"""Called with each incident: its record, what there is to say of it, and its folder."""


class NumericGuard(pl.Callback):
    """Checks every step before its optimizer applies it: losses, gradients (before clipping), buffers.

    A bad step is held: parameters, optimizer state, schedules, buffers, metrics, torch's random generators
    and the step count are as before it. It is run again under instrumentation, and what is to blame goes to
    `incidents/step-N/`. Then the policy's `guard.response` follows: `raise` stops training, `hold` goes on,
    `rollback`, `lower-lr` and `promote` change something first; all within `guard.budget`.

    An overflow of gradients alone, under a dynamic loss scale that can still fall, is expected: it is held
    and counted, and nothing follows.

    Put it before callbacks that count steps or average weights.

    Args:
        policy: whose `guard` section counts; None: that of the trainer's precision plugin, else the default.
        origin: row number of a batch's `row` field to `file:line`, for messages.
        folder: the run's folder, below which incidents are kept; None: the logger's folder, else
            `default_root_dir`.
        late: the host asks for the verdict once the optimizer's step is queued, and the device goes on: fused
            optimizers take the verdict there. None: so on a GPU. Where it is not possible it asks before.

    Raises:
        NumericIncident: while training; a step is bad and the response says so, or a limit is spent.
        ConfigError: when training starts; the response needs what this trainer has not (X815).
    """

    def __init__(
        self,
        policy: PrecisionPolicy | str | Mapping[str, Any] | None = None,
        *,
        origin: Origin | None = None,
        folder: str | Path | None = None,
        late: bool | None = None,
    ) -> None:
        self._asked_late = late
        self._declared = None if policy is None else PrecisionPolicy.model_validate(policy)
        self._origin = origin
        self._folder = None if folder is None else Path(folder)
        self.overflows = 0
        """Steps held because gradients overflowed while the loss scale could still fall."""
        self.findings: list[Finding] = []
        """One for each held step that training went on after."""
        self.incidents: list[Path] = []
        """Folders of the incidents; where several processes train, all of them know."""
        self.on_incident: list[OnIncident] = []
        self.gradient_norm: Tensor | None = None
        """The norm over all gradients at hand, where somebody took it already: they are not read again."""
        self.on_promotion: list[Callable[[Plan], None]] = []
        """Called with the plan in force after a layer was promoted."""
        self._responses: Responses | None = None
        self._state: dict[str, Any] = {}
        self._verdict: Verdict | None = None
        self._reading: LateVerdict | None = None
        self._batches: list[Any] = []
        self._indices: list[int] = []
        self._replaying = False

    @property
    def held(self) -> int:
        """Steps held so far, expected overflows not among them."""
        return self._responses.held if self._responses is not None else 0

    # --- the step ----------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        plugin = trainer.precision_plugin
        if self._declared is None:
            own = plugin.policy if isinstance(plugin, PrecisionPlugin) else None
            self._declared = own or PrecisionPolicy.preset("float32")
        section = self._section = self._declared.guard
        self._home = self._find_home(trainer)
        self._responses = Responses(section)
        if self._state:
            self._responses.load_state_dict(self._state)
        root = getattr(module, "precision_root", module)
        self._updated = UPDATED.intersection(section.watch)
        whole = len(trainer.optimizers) > 1 or bool(self._updated)
        schedules = [c.scheduler for c in trainer.lr_scheduler_configs]
        self._guard = StepGuard(root, section.watch, trainer.optimizers)
        self._snapshot = Snapshot(module, trainer.optimizers, schedules, whole=whole)
        self._active = True
        self._late = self._may_be_late(trainer)
        self._begun = False
        self._points = None
        if section.response == "promote" and not isinstance(plugin, PrecisionPlugin):
            raise _needs("promote", "castiron's Trainer, or its PrecisionPlugin")
        if section.response == "rollback":
            if not can_replay(trainer):
                raise _needs("rollback", "one process, or DDP")
            self._points = RollbackPoints(self._home / CHECKPOINTS, section.rollback.steps)
            self._points.keep(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._active = trainer.global_step % self._section.every == 0
            self._verdict = None
            self._batches.clear()
            self._indices.clear()
            if self._active:
                self._guard.begin()
                self._snapshot.take()
                self._counts, self._logged = counts(trainer), logged(trainer)
        if self._active:
            self._batches.append(batch)
            self._indices.append(batch_idx)

    def on_before_backward(self, trainer: pl.Trainer, module: pl.LightningModule, loss: Tensor) -> None:
        if self._active and not self._replaying:
            self._guard.see_loss(loss)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        if not self._active or self._replaying:
            return
        if self._verdict is None:
            self._guard.see_gradients(self.gradient_norm)
            # The first step makes the optimizer's state, and shows which modules hand on -inf on purpose.
            if self._late and self._begun:
                flag = agreed_flag(trainer, self._guard.flag(COMPUTED))
                give_verdict(optimizer, flag)
                self._reading = LateVerdict(flag)
                return
            verdict = agreed(trainer, self._guard.verdict(COMPUTED))
            if not verdict.bad:
                return
            self._condemn(trainer, verdict)
        drop_gradients([optimizer])

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._guard.end()
        reading = self._forget_reading(trainer)
        if reading is not None and reading.read():
            own = self._guard.verdict(COMPUTED)
            elsewhere = "another rank" if trainer.world_size > 1 else "gradients"
            self._condemn(trainer, own if own.bad else Verdict(True, {elsewhere: ()}))
        if self._updated and self._verdict is None and self._active and counts(trainer) != self._counts:
            verdict = agreed(trainer, self._guard.verdict(self._updated))
            if verdict.bad:
                self._verdict, self._expected = verdict, False
        if self._verdict is None:
            self._begun = self._begun or (self._active and counts(trainer) != self._counts)
            if self._points is not None:
                self._points.keep(trainer)
            return
        verdict, self._verdict = self._verdict, None
        self._put_back(trainer)
        if isinstance(module, RecipeModule):
            module.forget(len(self._batches))
        if self._expected:
            self.overflows += 1
            return
        plugin = trainer.precision_plugin
        scale = None
        if isinstance(plugin, PrecisionPlugin):
            if not verdict.gradients_only:
                plugin.forget_step()
            elif (scale := plugin.check_scale()) is not None and scale.severity != "error":
                scale = None
        self._respond(trainer, module, verdict, scale)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._guard.release()
        if self._points is not None:
            self._points.clear()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._forget_reading(trainer)
        if getattr(self, "_guard", None) is not None:
            self._guard.release()

    def _condemn(self, trainer: pl.Trainer, verdict: Verdict) -> None:
        self._verdict = verdict
        self._expected = verdict.gradients_only and _may_still_fall(trainer)

    def _forget_reading(self, trainer: pl.Trainer) -> LateVerdict | None:
        """The optimizers step again, whatever the verdict was. → the verdict that was still to be read."""
        reading, self._reading = self._reading, None
        if reading is not None:
            for optimizer in trainer.optimizers:
                forget_verdict(optimizer)
        return reading

    def _may_be_late(self, trainer: pl.Trainer) -> bool:
        """Whether the optimizer takes a verdict that the host has not seen."""
        if self._asked_late is not None:
            asked = self._asked_late
        else:
            asked = trainer.strategy.root_device.type == "cuda"
        return (
            asked
            and len(trainer.optimizers) == 1
            and trainer.lightning_module.automatic_optimization
            and can_be_late(trainer.optimizers)
            # a GradScaler gives the optimizer a verdict of its own
            and isinstance(trainer.precision_plugin, PrecisionPlugin)
        )

    def _put_back(self, trainer: pl.Trainer) -> None:
        """Nothing of the step stays."""
        drop_gradients(trainer.optimizers)
        self._snapshot.restore()
        put_back(trainer, self._counts)
        unlog(trainer, self._logged)

    # --- what follows ------------------------------------------------------------------------------

    def _respond(
        self, trainer: pl.Trainer, module: pl.LightningModule, verdict: Verdict, scale: Finding | None
    ) -> None:
        assert self._responses is not None
        committed = trainer.global_step
        step = replay_step(trainer, list(self._batches), list(self._indices), verdict, self._snapshot.restore)
        incident, path, speaks, rank = None, None, False, 0
        problems: tuple[Finding, ...] = ()
        if can_replay(trainer):
            suspect = suspected(trainer, verdict)
            found = self._attribute(step) if suspect else None
            rank = first_rank(trainer, suspect, found is not None and found.reproduced)
            speaks = trainer.global_rank == rank
            if speaks and found is not None:
                incident = self._record(trainer, step, found, rank)
            incident = told(trainer, incident, rank)
        decision = self._responses.decide(committed, incident, compute=_computes(trainer))
        if scale is not None:
            decision = Decision("raise", findings=(scale, *decision.findings))
        if incident is not None:
            incident = incident.model_copy(update={"response": decision.response})
            if speaks:
                path, problems = self._store(trainer, module, step, incident)
            path, problems = told_stored(trainer, path, problems, rank)
            if path is not None:
                self.incidents.append(path)
        watch, rows = self._section.watch, rows_of(self._batches, verdict, self._origin)
        about = describe_held(verdict, committed, watch, rows=rows, incident=incident)
        about = told_unstored(about, problems)
        if incident is not None:
            for listener in self.on_incident:
                listener(incident, about, path)
        self._put_back(trainer)
        if decision.response == "raise":
            raise NumericIncident([*decision.findings, about], incident=incident, path=path)
        self.findings.append(about)
        self._carry_out(trainer, decision)

    def _attribute(self, step: ReplayStep) -> Attribution:
        self._replaying = True
        try:
            return attribute(step)
        finally:
            self._replaying = False

    def _record(self, trainer: pl.Trainer, step: ReplayStep, found: Attribution, rank: int) -> Incident:
        return incident_of(
            found,
            step=trainer.global_step,
            epoch=trainer.current_epoch,
            policy=step.policy,
            verdict=step.verdict,
            rank=rank,
            origin=self._origin,
        )

    def _store(
        self, trainer: pl.Trainer, module: pl.LightningModule, step: ReplayStep, incident: Incident
    ) -> tuple[Path | None, tuple[Finding, ...]]:
        plugin = trainer.precision_plugin
        return stored(
            lambda: store(
                incident,
                step,
                self._home / INCIDENTS,
                module=module,
                plan=plugin.plan if isinstance(plugin, PrecisionPlugin) else None,
                accumulate=trainer.accumulate_grad_batches,
                batch_indices=self._indices,
                clip_norm=trainer.gradient_clip_val,
                origin=self._origin,
            )
        )

    def _carry_out(self, trainer: pl.Trainer, decision: Decision) -> None:
        if decision.response == "lower-lr":
            assert decision.factor is not None
            lower_learning_rate(trainer, decision.factor)
        elif decision.response == "rollback":
            assert self._points is not None
            assert decision.steps is not None
            assert self._responses is not None
            self._responses.went_back(self._points.go_back(trainer, decision.steps))
        elif decision.response == "promote":
            assert decision.module is not None
            plan = promote(trainer, decision.module)
            for listener in self.on_promotion:
                listener(plan)

    def _find_home(self, trainer: pl.Trainer) -> Path:
        """The run's folder. All processes have to call it."""
        if self._folder is not None:
            return self._folder
        logger = trainer.logger
        if isinstance(logger, RunLogger):
            own = logger.log_dir if trainer.is_global_zero else ""
            return Path(trainer.strategy.broadcast(own))
        return Path(trainer.log_dir or trainer.default_root_dir)

    # --- state -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {} if self._responses is None else {"responses": self._responses.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict.get("responses", {})


def guard_of(trainer: pl.Trainer) -> NumericGuard | None:
    """The guard among a trainer's callbacks."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((c for c in callbacks if isinstance(c, NumericGuard)), None)


def _needs(response: str, what: str) -> ConfigError:
    return ConfigError(
        finding(
            "X815",
            f"The response '{response}' needs {what}.",
            place=Place(key="guard.response"),
            expected="raise, hold",
            received=response,
            remedy="Choose one of those.",
        )
    )


def _computes(trainer: pl.Trainer) -> dict[str, str]:
    """Layer → format it computes in, by the plan in force."""
    plugin = trainer.precision_plugin
    plan = plugin.plan if isinstance(plugin, PrecisionPlugin) else None
    return {row.path: row.compute for row in plan.rows} if plan is not None else {}


def _may_still_fall(trainer: pl.Trainer) -> bool:
    """Whether a dynamic loss scale stands above its floor."""
    plugin = trainer.precision_plugin
    if not isinstance(plugin, PrecisionPlugin) or plugin.policy.scaling.kind != "dynamic":
        return False
    scale = plugin.loss_scale()
    return scale is not None and scale > plugin.policy.scaling.min
