"""Numerical health of any Lightning training: measured every so many steps, told where people look."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor
from torch.optim import Optimizer

from castiron.diagnostics import Finding
from castiron.health.logs import summary_of
from castiron.health.recorder import HealthRecorder
from castiron.health.snapshot import ScaleHealth, Snapshot
from castiron.health.writer import EventWriter
from castiron.lightning.logger import RunLogger
from castiron.lightning.precision import PrecisionPlugin
from castiron.policy import PrecisionPolicy
from castiron.torch.health.monitor import HealthMonitor
from castiron.torch.shares import gather_on_first

_LOG = logging.getLogger("castiron")


class NumericHealth(pl.Callback):
    """Measures activations, gradients, parameters, optimizer state and updates at every `health.every`-th
    step, and says what they foretell (N520 to N527).

    What is measured goes to TensorBoard's Health pages and to `health.parquet`, in the folder of castiron's
    logger; with another logger into `log_dir`, and scalars to that logger. Of several processes each measures
    what it has, rank 0 puts it together, and alone writes and speaks. (Under Lightning's own `FSDPStrategy`
    nothing is measured.)

    Put it after `NumericGuard`, and before what compiles the model.

    Args:
        policy: whose `health` section counts; None: that of the trainer's precision plugin, else the default.
        folder: where `health.parquet` goes; None: the logger's folder.
        writer: TensorBoard's events; None: those of castiron's logger, where it is used.
        on_findings: called with advice as it comes; None: logged as warnings of the logger
            `castiron`.
        held: how many steps were held so far.
        resumed_at: last step that the training goes on from.
    """

    def __init__(
        self,
        policy: PrecisionPolicy | str | Mapping[str, Any] | None = None,
        *,
        folder: str | Path | None = None,
        writer: EventWriter | None = None,
        on_findings: Callable[[Sequence[Finding]], None] | None = None,
        held: Callable[[], int] | None = None,
        resumed_at: int | None = None,
    ) -> None:
        self._declared = None if policy is None else PrecisionPolicy.model_validate(policy)
        self._folder = None if folder is None else Path(folder)
        self._writer = writer
        self._on_findings = on_findings
        self._held = held or (lambda: 0)
        self._resumed_at = resumed_at
        self._recorder: HealthRecorder | None = None
        self._begun = 0
        self._updating = False
        self.monitor: HealthMonitor | None = None
        """What measures; None before training starts."""
        self.findings: list[Finding] = []
        """Everything that was said so far."""

    @property
    def last(self) -> Snapshot | None:
        """The latest snapshot: on rank 0 of all processes, on another of what it has."""
        return self.monitor.last if self.monitor is not None else None

    # --- start and end -----------------------------------------------------------------------------

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if isinstance(trainer.strategy, FSDPStrategy):
            return  # layers are cut into flat parts, which belong to no tensor
        plugin = trainer.precision_plugin
        own = plugin.policy if isinstance(plugin, PrecisionPlugin) else None
        policy = self._declared or own or PrecisionPolicy.preset("float32")
        if self.monitor is not None:
            self.monitor.remove()
        gather = gather_on_first if trainer.world_size > 1 else None
        self.monitor = HealthMonitor(getattr(module, "precision_root", module), (), policy, gather=gather)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        home = None
        if self._folder is None and not isinstance(trainer.logger, RunLogger):
            home = trainer.log_dir  # a broadcast: all ranks have to ask, also those that measure nothing
        if self.monitor is None:
            return
        self.monitor.use(trainer.optimizers)
        if self._recorder is None and trainer.is_global_zero:
            folder, writer = self._folder, self._writer
            logger = trainer.logger
            if isinstance(logger, RunLogger):
                folder, writer = folder or logger.run.path, writer or logger.experiment
            if folder is None and home is not None:
                folder = Path(home)
            if folder is not None:
                resumed = self._resumed_at
                if resumed is None and trainer.global_step:
                    resumed = trainer.global_step
                tell = self._on_findings
                self._recorder = HealthRecorder(
                    folder, writer, resumed_at=resumed, on_problem=tell and (lambda f: tell([f]))
                )

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.monitor is not None:
            self.monitor.remove()
        if self._recorder is not None:
            recorder, self._recorder = self._recorder, None
            recorder.close()

    # --- a step ------------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.monitor is not None and batch_idx % trainer.accumulate_grad_batches == 0:
            if self.monitor.active:
                self.monitor.discard()  # the step before never came to its end
            self._begun, self._updating = trainer.global_step, False
            self.monitor.begin(self._begun)

    def on_before_backward(self, trainer: pl.Trainer, module: pl.LightningModule, loss: Tensor) -> None:
        if self.monitor is not None and self.monitor.active:
            self.monitor.see_loss(loss)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        if self.monitor is not None and self.monitor.active:
            self._updating = True
            self.monitor.before_update(_scaling(trainer))

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        monitor = self.monitor
        if monitor is None or not monitor.active or not self._updating:
            return
        if trainer.global_step > self._begun:
            snapshot = monitor.end(held=self._held())
            if snapshot is not None:
                self._record(trainer, snapshot)
        else:
            monitor.discard(held=self._held(), scaling=_scaling(trainer))
        found = monitor.news()
        if found and trainer.is_global_zero:
            self.findings += found
            if self._recorder is not None:
                self._recorder.say(found, trainer.global_step)
            if self._on_findings is not None:
                self._on_findings(found)
            else:
                for f in found:
                    _LOG.warning("%s", f)

    def _record(self, trainer: pl.Trainer, snapshot: Snapshot) -> None:
        if not trainer.is_global_zero:
            return
        if self._recorder is not None:
            self._recorder.add(snapshot)
        summary = summary_of(snapshot)
        for logger in trainer.loggers if summary else ():
            if not isinstance(logger, RunLogger):
                logger.log_metrics(summary, snapshot.step)


def _scaling(trainer: pl.Trainer) -> ScaleHealth:
    """The loss scale of the precision plugin. Waits for the device where the loss is scaled."""
    plugin = trainer.precision_plugin
    if not isinstance(plugin, PrecisionPlugin) or not plugin.loss_scaler.active:
        return ScaleHealth("none")
    counts = plugin.loss_scaler.counts()
    floor = getattr(plugin.policy.scaling, "min", 1.0)
    return ScaleHealth(
        plugin.loss_scaler.kind,
        plugin.loss_scaler.get_scale(),
        float(floor),
        counts["overflows"],
        counts["at_floor"],
    )
