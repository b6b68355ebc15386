"""Ranges of a recipe's model without training, and short trainings that leave nothing behind."""

from __future__ import annotations

import statistics
import time
from typing import Any

import lightning.pytorch as pl
import torch

from castiron.diagnostics import Finding, NumericIncident
from castiron.health.snapshot import Snapshot
from castiron.lightning.guard import NumericGuard
from castiron.lightning.loaders import TorchLoader
from castiron.lightning.module import RecipeModule
from castiron.lightning.precision import PrecisionPlugin
from castiron.lightning.run import make_trainer
from castiron.lightning.session import _load, _session
from castiron.torch.capability import device_capability
from castiron.torch.health.monitor import HealthMonitor
from castiron.torch.modules import describe
from castiron.training.backend import Job
from castiron.training.calibration import Measured, Trial
from castiron.training.preparation import prepare
from castiron.training.schedules import total_steps

_COLD = 5
"""Steps of a trial whose time does not count."""


def measure(job: Job, batches: int) -> Measured:
    """Forward and backward passes over training batches, with everything measured at each."""
    with _session(job):
        prepared = prepare(job, ("train",))
        module = RecipeModule(prepared.recipe, job.config.precision)
        if job.checkpoint is not None or job.weights is not None:
            _load(job, module)
        device = torch.device(device_capability(job.config.trainer.device).device)
        module.to(device).train()
        layers = describe(module.precision_root)
        plugin = PrecisionPlugin(job.config.precision)
        plugin.convert_module(module)
        try:
            snapshots, found = _passes(job, module, plugin, TorchLoader(prepared.batches["train"]), batches)
        finally:
            plugin.teardown()
    return Measured(snapshots=tuple(snapshots), layers=tuple(layers), findings=(*plugin.findings, *found))


def _passes(
    job: Job, module: RecipeModule, plugin: PrecisionPlugin, loader: TorchLoader, batches: int
) -> tuple[list[Snapshot], list[Finding]]:
    policy = job.config.precision.replace(health={"every": 1})
    seen: list[Snapshot] = []
    monitor = HealthMonitor(
        module.precision_root, (), policy, histograms_every=1, what_if_every=1, on_snapshot=seen.append
    )
    found: list[Finding] = []
    try:
        for number, rows in zip(range(batches), loader, strict=False):
            batch = {k: v.to(module.device) for k, v in plugin.convert_input(rows).items()}
            with monitor.step(number):
                with plugin.forward_context():
                    loss = module.training_step(batch, number)
                scaled = plugin.scaled(loss)
                monitor.see_loss(scaled)
                with plugin.backward_context():
                    scaled.backward()
                monitor.before_update()
            module.zero_grad(set_to_none=True)
            found += monitor.news()
    finally:
        monitor.remove()
    return seen, found


def trial(job: Job) -> Trial:
    """Train as the job says. An incident ends the trial with a loss that is not finite."""
    with _session(job):
        prepared = prepare(job, ("train",))
        loader = TorchLoader(prepared.batches["train"], job.config.trainer.limit_train)
        steps = total_steps(job.config.trainer, len(loader))
        module = RecipeModule(prepared.recipe, job.config.precision, steps)
        watch = _Watch()
        trainer = make_trainer(job, [NumericGuard(), watch])
        losses: list[float] = []
        try:
            trainer.fit(module, loader)
        except NumericIncident:
            losses = [float("nan")]
    losses = [*(float(x) for x in watch.losses), *losses]
    times = watch.times[_COLD:] or watch.times or [float("nan")]
    return Trial(losses=tuple(losses), step_ms=1e3 * statistics.median(times))


class _Watch(pl.Callback):
    """Keeps each step's loss and time."""

    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []
        self.times: list[float] = []
        self._start = 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"].detach().double().cpu()  # waits for the device
        self.times.append(time.perf_counter() - self._start)
        self.losses.append(loss)
