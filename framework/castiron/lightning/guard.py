"""Steps that are not finite are held: nothing of them is applied. For any Lightning trainer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.optim import Optimizer

from castiron.diagnostics import ConfigError, Finding, NumericIncident, Place, finding
from castiron.lightning.module import RecipeModule
from castiron.lightning.precision import PrecisionPlugin
from castiron.policy import PrecisionPolicy
from castiron.policy.sections import GuardSection
from castiron.torch.guard import StepGuard, Verdict
from castiron.torch.snapshot import Snapshot, drop_gradients

_SHOWN = 3


class NumericGuard(pl.Callback):
    """Checks every step before its optimizer applies it: losses, gradients (before clipping), buffers.

    A bad step is held: parameters, optimizer state, schedules, buffers, torch's random generators and the
    step count are as before it. Then the policy's `guard.response` follows: `raise` stops training, `hold`
    goes on, up to `guard.budget` held steps in a window.

    An overflow of gradients alone, under a dynamic loss scale that can still fall, is expected: it is held
    and counted, and nothing follows.

    Put it before callbacks that count steps or average weights.

    Args:
        policy: whose `guard` section counts; None: that of the trainer's precision plugin, else the default.
        origin: row number of a batch's `row` field to a place in a file, for messages.

    Raises:
        NumericIncident: while training; a step is bad and the response says so, or the budget is spent.
        ConfigError: when training starts; the response is one that this version does not have.
    """

    def __init__(
        self,
        policy: PrecisionPolicy | str | Mapping[str, Any] | None = None,
        *,
        origin: Callable[[int], str] | None = None,
    ) -> None:
        self._declared = None if policy is None else PrecisionPolicy.model_validate(policy)
        self._origin = origin
        self.held = 0
        """Steps held so far, expected overflows not among them."""
        self.overflows = 0
        """Steps held because gradients overflowed while the loss scale could still fall."""
        self.findings: list[Finding] = []
        """One for each held step that training went on after."""
        self._recent: deque[int] = deque()
        self._verdict: Verdict | None = None
        self._batches: list[Any] = []

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        plugin = trainer.precision_plugin
        if self._declared is None:
            own = plugin.policy if isinstance(plugin, PrecisionPlugin) else None
            self._declared = own or PrecisionPolicy.preset("float32")
        self._section = self._declared.guard
        _check(self._section)
        root = getattr(module, "precision_root", module)
        several = len(trainer.optimizers) > 1
        schedules = [c.scheduler for c in trainer.lr_scheduler_configs]
        self._guard = StepGuard(root, self._section.watch, trainer.optimizers)
        self._snapshot = Snapshot(root, trainer.optimizers, schedules, whole=several)
        self._active = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._active = trainer.global_step % self._section.every == 0
            self._verdict = None
            self._batches.clear()
            if self._active:
                self._guard.begin()
                self._snapshot.take()
                self._counts = _counts(trainer)
        if self._active:
            self._batches.append(batch)

    def on_before_backward(self, trainer: pl.Trainer, module: pl.LightningModule, loss: Tensor) -> None:
        if self._active:
            self._guard.see_loss(loss)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        if not self._active:
            return
        if self._verdict is None:
            self._guard.see_gradients()
            verdict = self._guard.verdict()
            if trainer.world_size > 1:  # one decision for all, or some would step and some not
                bad = trainer.strategy.reduce_boolean_decision(verdict.bad, all=False)
                verdict = verdict if verdict.bad else Verdict(bad, {"another rank": ()} if bad else {})
            if not verdict.bad:
                return
            self._verdict = verdict
            self._expected = verdict.gradients_only and _may_still_fall(trainer)
        drop_gradients([optimizer])

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._verdict is None:
            return
        verdict, self._verdict = self._verdict, None
        drop_gradients(trainer.optimizers)
        self._snapshot.restore()
        _put_back(trainer, self._counts)
        if isinstance(module, RecipeModule):
            module.forget(len(self._batches))
        if self._expected:
            self.overflows += 1
            return
        self._respond(trainer, verdict)

    def _respond(self, trainer: pl.Trainer, verdict: Verdict) -> None:
        self.held += 1
        step, budget = trainer.global_step, self._section.budget
        found = self._describe(step, verdict)
        if self._section.response == "raise":
            raise NumericIncident(found)
        self.findings.append(found)
        tried = step + self.held
        self._recent.append(tried)
        while self._recent[0] <= tried - budget.window:
            self._recent.popleft()
        if len(self._recent) > budget.holds:
            raise NumericIncident(
                [
                    finding(
                        "N510",
                        "",
                        place=Place(key="guard.budget"),
                        expected=f"at most {budget.holds} held steps in {budget.window}",
                        received=f"{len(self._recent)} in the last {min(budget.window, tried)}",
                    ),
                    found,
                ]
            )

    def _describe(self, step: int, verdict: Verdict) -> Finding:
        parts = [f"{what} ({_listed(names)})" if names else what for what, names in verdict.seen.items()]
        rows = self._rows(verdict)
        return finding(
            "N500",
            f"The step after {step:,} committed ones is not finite, and was not applied"
            + (f"; its rows: {rows}" if rows else ""),
            place=Place(phase="forward" if "loss" in verdict.seen else "backward"),
            expected=f"finite {', '.join(self._section.watch)}",
            received=f"NaN or infinity in {'; '.join(parts)}",
            seen={what: list(names) for what, names in verdict.seen.items()},
            micro_batches=list(verdict.micro_batches),
            step=step,
        )

    def _rows(self, verdict: Verdict) -> str:
        """The rows of the batches to blame, as far as batches carry them."""
        # Manual optimization may take several losses of one batch.
        chosen = [b for i, b in enumerate(self._batches) if i in verdict.micro_batches] or self._batches
        rows = [int(r) for b in chosen if isinstance(b, Mapping) and "row" in b for r in b["row"].tolist()]
        if not rows:
            return ""
        named = [self._origin(r) if self._origin else str(r) for r in rows[:_SHOWN]]
        return _listed(named, len(rows))


def _check(section: GuardSection) -> None:
    """Refuse what this version does not do, rather than not do it."""
    for key, received, known in (
        ("guard.response", [section.response], ("raise", "hold")),
        ("guard.watch", section.watch, ("loss", "gradients", "buffers", "parameters", "optimizer")),
    ):
        if odd := [r for r in received if r not in known]:
            raise ConfigError(
                finding(
                    "X815",
                    "This version does not do that yet.",
                    place=Place(key=key),
                    expected=", ".join(known),
                    received=", ".join(odd),
                    remedy="Choose one of those.",
                )
            )


def _listed(names: Any, total: int | None = None) -> str:
    total = len(names) if total is None else total
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {total - _SHOWN} more" if total > _SHOWN else shown


def _may_still_fall(trainer: pl.Trainer) -> bool:
    """Whether a dynamic loss scale stands above its floor."""
    plugin = trainer.precision_plugin
    if not isinstance(plugin, PrecisionPlugin) or plugin.policy.scaling.kind != "dynamic":
        return False
    scale = plugin.loss_scale()
    return scale is not None and scale > plugin.policy.scaling.min


def _trackers(trainer: pl.Trainer) -> list[Any]:
    loop = trainer.fit_loop.epoch_loop
    steps = loop.automatic_optimization.optim_progress.optimizer.step
    by_hand = loop.manual_optimization.optim_step_progress
    return [t for p in (steps, by_hand, loop.scheduler_progress) for t in (p.total, p.current)]


def _counts(trainer: pl.Trainer) -> list[tuple[int, int]]:
    """Lightning's counts of optimizer and schedule steps."""
    return [(t.ready, t.completed) for t in _trackers(trainer)]


def _put_back(trainer: pl.Trainer, counts: list[tuple[int, int]]) -> None:
    for tracker, (ready, completed) in zip(_trackers(trainer), counts, strict=True):
        tracker.ready, tracker.completed = ready, completed
