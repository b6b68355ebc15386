"""Lightning's loop over the batches of an epoch, for modules that leave most of its hooks alone.

Lightning passes some forty stations a step (hooks of the module, the strategy and each callback, loggers'
bookkeeping), which costs a CPU half a millisecond to a millisecond, whoever listens. This loop passes those
that somebody listens to, in Lightning's order, and keeps Lightning's counters; everything around a batch
(validation, epochs, checkpoints, restarting) is Lightning's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor
from torch.optim import Optimizer

from castiron.lightning.guard import NumericGuard, guard_of
from castiron.lightning.module import RecipeModule
from castiron.lightning.precision import PrecisionPlugin
from castiron.lightning.profiling import NoProfiler
from castiron.torch.clipping import clip_by_norm, gradient_norm
from castiron.torch.dtypes import torch_dtype

_OF_A_STEP = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
_OF_A_MODULE = (
    *_OF_A_STEP,
    "on_before_batch_transfer",
    "on_after_batch_transfer",
    "transfer_batch_to_device",
    "optimizer_step",
    "optimizer_zero_grad",
    "configure_gradient_clipping",
    "clip_gradients",
    "backward",
)


class StepLoop(_TrainingEpochLoop):
    """Trains a `RecipeModule` on one device; hands over to Lightning's own steps for anything else."""

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        super().on_run_start(data_fetcher)
        trainer = self.trainer
        self._lean = serves(trainer)
        self._module, self._plugin = trainer.lightning_module, trainer.precision_plugin
        self._listeners = {name: _listeners(trainer, name) for name in _OF_A_STEP}
        self._moves = trainer.strategy.root_device.type != "cpu"
        if isinstance(plugin := self._plugin, PrecisionPlugin):
            plugin.before_step = self._before_step if self._lean else None
        self._guard = _guard_that_shares(trainer) if self._lean else None
        if self._lean:  # a profiler's stations around the next batch
            data_fetcher._start_profiler = data_fetcher._stop_profiler = _nothing

    def advance(self, data_fetcher: _DataFetcher) -> None:
        if self.restarting or not self._lean:
            super().advance(data_fetcher)
            return
        trainer, progress = self.trainer, self.batch_progress
        self.val_loop.restarting = False
        batch, _, _ = next(data_fetcher)
        batch_idx = self.batch_idx + 1
        progress.is_last_batch = data_fetcher.done
        batch = self._plugin.convert_input(batch)
        if self._moves:
            batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        progress.increment_ready()
        self._tell("on_train_batch_start", batch, batch_idx)
        progress.increment_started()
        loss = self._train(batch, batch_idx)
        progress.increment_processed()
        if trainer.lr_scheduler_configs:
            self.update_lr_schedulers("step", update_plateau_schedulers=False)
            if self._num_ready_batches_reached():
                self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        self._tell("on_train_batch_end", {"loss": loss}, batch, batch_idx)
        progress.increment_completed()

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        trainer = self.trainer
        if (
            not self._lean
            or self._skip_next_val
            or trainer.lr_scheduler_configs
            or trainer.should_stop
            or trainer.received_sigterm
            or self._should_check_val_fx(data_fetcher)
        ):
            super().on_advance_end(data_fetcher)
        elif not self._should_accumulate():  # all that is left of it between two validations
            self._batches_that_stepped += 1

    def _train(self, batch: Any, batch_idx: int) -> Tensor:
        """Forward, backward, and the optimizer's step where enough batches are accumulated. → the loss."""
        trainer = self.trainer
        plugin, module, optimizer = self._plugin, self._module, trainer.optimizers[0]
        assert isinstance(plugin, PrecisionPlugin)
        share = trainer.accumulate_grad_batches
        losses: list[Tensor] = []

        def closure() -> Tensor:
            with plugin.train_step_context():
                loss: Tensor = module.training_step(batch, batch_idx)
            losses.append(loss.detach())
            if batch_idx % share == 0:
                self._tell("on_before_zero_grad", optimizer)
                optimizer.zero_grad()
            scaled = plugin.scaled(loss / share if share > 1 else loss)
            self._tell("on_before_backward", scaled)
            plugin.backward(scaled, module, optimizer)
            self._tell("on_after_backward")
            return losses[0]

        if self._should_accumulate():
            closure()
        else:
            steps = self.automatic_optimization.optim_progress.optimizer.step
            steps.increment_ready()
            plugin.optimizer_step(optimizer, module, closure)
            steps.increment_completed()
        return losses[0]

    def _before_step(self, optimizer: Optimizer) -> None:
        """Between backward and the optimizer's step."""
        trainer, guard = self.trainer, self._guard
        if guard is not None:  # one norm serves it and clipping
            assert isinstance(self._plugin, PrecisionPlugin)
            dtype = torch_dtype(self._plugin.policy.accumulate)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            guard.gradient_norm = gradient_norm(parameters, dtype)
            self._tell("on_before_optimizer_step", optimizer)
            clip_by_norm(parameters, float(trainer.gradient_clip_val or 0), dtype, guard.gradient_norm)
            return
        self._tell("on_before_optimizer_step", optimizer)
        if trainer.gradient_clip_val:
            how = trainer.gradient_clip_algorithm or GradClipAlgorithmType.NORM
            self._plugin.clip_gradients(optimizer, trainer.gradient_clip_val, how)

    def _tell(self, hook: str, *arguments: Any) -> None:
        for listener in self._listeners[hook]:
            listener(self.trainer, self._module, *arguments)


def use_step_loop(trainer: pl.Trainer) -> None:
    """Put the loop into a trainer that has not started yet."""
    own = trainer.fit_loop.epoch_loop
    trainer.fit_loop.epoch_loop = StepLoop(trainer, own.min_steps, own.max_steps)


def serves(trainer: pl.Trainer) -> bool:
    """Whether nothing of this training needs the stations that are left out."""
    module = trainer.lightning_module
    return (
        isinstance(module, RecipeModule)
        and module.automatic_optimization
        and isinstance(trainer.precision_plugin, PrecisionPlugin)
        and isinstance(trainer.strategy, SingleDeviceStrategy)
        and isinstance(trainer.profiler, NoProfiler)  # type: ignore[attr-defined]
        and len(trainer.optimizers) == 1
        and all(getattr(type(module), name) is getattr(pl.LightningModule, name) for name in _OF_A_MODULE)
    )


def _guard_that_shares(trainer: pl.Trainer) -> NumericGuard | None:
    """The guard, where the norm that gradients are clipped by tells it what it asks of them: on a CPU, over
    all parameters, with nobody between the two who might change a gradient."""
    module = trainer.lightning_module
    trained = {p for group in trainer.optimizers[0].param_groups for p in group["params"]}
    listeners = _listeners(trainer, "on_before_optimizer_step")
    shares = (
        trainer.gradient_clip_val
        and trainer.gradient_clip_algorithm in (None, GradClipAlgorithmType.NORM)
        and trainer.strategy.root_device.type == "cpu"
        and all(p in trained for p in module.parameters() if p.requires_grad)
        and all(listener.__module__.startswith("castiron.") for listener in listeners)
    )
    return guard_of(trainer) if shares else None


def _listeners(trainer: pl.Trainer, hook: str) -> list[Callable[..., Any]]:
    """The callbacks' methods for a hook, those left as Lightning has them not among them."""
    inherited = getattr(pl.Callback, hook)
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [getattr(c, hook) for c in callbacks if getattr(type(c), hook) is not inherited]


def _nothing() -> None:
    pass
