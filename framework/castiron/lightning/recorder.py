"""Writes what a training does: TensorBoard events, `metrics.jsonl`, and the live report."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl

from castiron.health import tags
from castiron.health.writer import EventWriter
from castiron.lightning.module import RecipeModule
from castiron.lightning.precision import PrecisionPlugin
from castiron.training.backend import Progress, Reporter
from castiron.training.run_directory import RunDirectory


class Recorder(pl.Callback):
    """Logs every so many steps and after each validation; in between it costs an integer comparison a step.

    Args:
        every: optimizer steps between logged rows. To read the loss the host waits for the device.
    """

    def __init__(self, run: RunDirectory, writer: EventWriter, reporter: Reporter, *, every: int) -> None:
        self._run, self._writer, self._reporter, self._every = run, writer, reporter, every
        self._logged = 0
        self._items = 0
        self._since = 0.0
        self._told: set[str] = set()
        self.held: Callable[[], int] = lambda: 0
        """How many steps were held so far."""
        self.started = 0.0
        self.items_per_s = 0.0
        """Rows per second since the last log, validation left out."""
        self.train_loss: float | None = None
        """Mean loss since the last log but one."""

    # --- training ----------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, RecipeModule)
        self.started = self._since = time.perf_counter()
        self._logged, self._items = trainer.global_step, module.items
        if trainer.global_step:
            self._run.trim_metrics(trainer.global_step)  # what was logged after the checkpoint comes again
        self._reporter.begin(self._progress(trainer, module))

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        # At multiples, so that a resumed run logs the steps that the whole one would.
        if step != self._logged and (step % self._every == 0 or step == 1):
            self._log(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.global_step != self._logged:
            self._log(trainer, module)
        self._writer.flush()

    def _log(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, RecipeModule)
        self.train_loss = module.take_train_loss()  # waits for the device, so the clock is read after it
        now = time.perf_counter()
        elapsed = now - self._since
        if elapsed > 0:
            self.items_per_s = trainer.world_size * (module.items - self._items) / elapsed
        step = trainer.global_step
        self._logged, self._items, self._since = step, module.items, now
        rates = _learning_rates(trainer)
        epoch = _epoch(trainer)
        values: dict[tags.Tag, float] = {tags.throughput(): self.items_per_s, tags.epoch(): epoch}
        values |= {tags.learning_rate(name): rate for name, rate in rates.items()}
        if self.train_loss is not None:
            values[tags.loss("train")] = self.train_loss
        scale = _scale(trainer)
        if scale is not None:
            values[tags.loss_scale()] = scale
            self._check_scale(trainer)
        if held := self.held():
            values[tags.held_steps()] = held
        self._writer.scalars(values, step)
        row: dict[str, Any] = {"step": step, "epoch": round(epoch, 4), "train/loss": self.train_loss}
        row |= {"learning_rate" if not name else f"learning_rate/{name}": r for name, r in rates.items()}
        row["items_per_s"] = round(self.items_per_s, 1)
        if scale is not None:
            row["loss_scale"] = scale
        self._run.log_metrics(row)
        self._reporter.update(self._progress(trainer, module))

    def _check_scale(self, trainer: pl.Trainer) -> None:
        """Say once when the scale stands at its floor, or has settled after calibrating."""
        plugin = trainer.precision_plugin
        found = plugin.check_scale() if isinstance(plugin, PrecisionPlugin) else None
        if found is not None and found.code not in self._told:
            self._told.add(found.code)
            self._reporter.findings([found])
            self._writer.text(tags.findings(), f"- **{found.severity} {found.code}** {found.sentence()}")

    # --- evaluation --------------------------------------------------------------------------------

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and trainer.global_step != self._logged:
            self._log(trainer, module)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._log_evaluation(trainer, module, "validation")
            assert isinstance(module, RecipeModule)
            self._reporter.update(self._progress(trainer, module))
            self._since = time.perf_counter()

    def on_test_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._log_evaluation(trainer, module, "test")

    def _log_evaluation(self, trainer: pl.Trainer, module: pl.LightningModule, split: tags.Split) -> None:
        assert isinstance(module, RecipeModule)
        step = trainer.global_step or self._logged
        self._writer.scalars({tags.metric(n, split): v for n, v in module.results.items()}, step)
        row: dict[str, Any] = {"step": step, "epoch": round(_epoch(trainer), 4)}
        self._run.log_metrics(row | {f"{split}/{name}": value for name, value in module.results.items()})

    def _progress(self, trainer: pl.Trainer, module: RecipeModule) -> Progress:
        return Progress(
            step=trainer.global_step,
            steps=module.total_steps or None,
            epoch=max(math.ceil(_epoch(trainer)), 1),
            epochs=trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None,
            loss=self.train_loss,
            metrics=module.results,
            items_per_s=self.items_per_s or None,
            scale=_scale(trainer),
            held=self.held(),
        )


def _scale(trainer: pl.Trainer) -> float | None:
    plugin = trainer.precision_plugin
    return plugin.loss_scale() if isinstance(plugin, PrecisionPlugin) else None


def _epoch(trainer: pl.Trainer) -> float:
    """Epochs done, with the fraction of the one running."""
    batches = trainer.num_training_batches
    done = trainer.fit_loop.total_batch_idx + 1
    return done / batches if batches and batches != float("inf") else float(trainer.current_epoch)


def _learning_rates(trainer: pl.Trainer) -> dict[str | None, float]:
    """Parameter group → learning rate; the key is None where all are the same."""
    rates = [float(g["lr"]) for optimizer in trainer.optimizers for g in optimizer.param_groups]
    if len(set(rates)) <= 1:
        return {None: rates[0]} if rates else {}
    return {f"group {i}": rate for i, rate in enumerate(rates)}
