"""One side of `castiron compare`: a training under one policy that keeps nothing, looked at on the way."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from castiron.diagnostics import NumericIncident
from castiron.lightning.auditing import first_batch
from castiron.lightning.calibrating import _COLD, _Watch
from castiron.lightning.guard import NumericGuard
from castiron.lightning.loaders import TorchLoader
from castiron.lightning.module import RecipeModule
from castiron.lightning.precision import PrecisionPlugin
from castiron.lightning.run import make_trainer
from castiron.lightning.session import _session
from castiron.torch.looking import look
from castiron.torch.modules import class_names, walk
from castiron.training.backend import Job
from castiron.training.preparation import prepare
from castiron.training.schedules import total_steps
from castiron.training.side import Probe, Stop, Trained


def side(job: Job, at: Sequence[int]) -> Trained:
    """Train as the job says, and look at the first training batch after these steps."""
    config = job.config.trainer
    with _session(job):
        prepared = prepare(job, ("train", "validation"))
        loader = TorchLoader(prepared.batches["train"], config.limit_train)
        module = RecipeModule(prepared.recipe, job.config.precision, total_steps(config, len(loader)))
        types = {path: class_names(m)[0] for path, m in walk(module.precision_root)}
        watch, looks = _Watch(), _Looks(first_batch(loader), at)
        trainer = make_trainer(job, [NumericGuard(), watch, looks])
        metrics: dict[str, float] = {}
        stopped: Stop | None = None
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            trainer.fit(module, loader)
        except NumericIncident as e:
            stopped = Stop(e.findings[0], trainer.global_step)
        memory = looks.memory(module, trainer)
        if not stopped and "validation" in prepared.batches:
            validation = TorchLoader(prepared.batches["validation"], config.limit_validation)
            trainer.validate(module, validation, verbose=False)
            metrics = dict(module.results)
    times = watch.times[_COLD:] or watch.times or [float("nan")]
    return Trained(
        losses=tuple(float(x) for x in watch.losses),
        step_ms=1e3 * statistics.median(times),
        metrics=metrics,
        memory=memory,
        probes=tuple(looks.probes),
        types=types,
        stopped=stopped,
        batches=tuple(looks.batches),
    )


class _Looks(pl.Callback):
    """Looks at the model before the first step, and after some."""

    def __init__(self, batch: Any, at: Sequence[int]) -> None:
        self._batch, self._at = batch, set(at)
        self.probes: list[Probe] = []
        self.batches: list[str] = []

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._look(trainer, module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches.append(sha256(batch["row"].cpu().numpy().tobytes()).hexdigest())
        self._look(trainer, module)

    def memory(self, module: RecipeModule, trainer: pl.Trainer) -> dict[str, int]:
        """Bytes by what they are for."""
        state = {
            id(t): t
            for optimizer in trainer.optimizers
            for held in optimizer.state.values()
            for t in (held.values() if isinstance(held, dict) else ())
            if isinstance(t, Tensor)
        }
        found = {
            "parameters": sum(p.nbytes for p in module.precision_root.parameters()),
            "optimizer state": sum(t.nbytes for t in state.values()),
        }
        if self.probes:
            found["kept for backward"] = self.probes[0].saved_bytes
        if module.device.type == "cuda":
            found["GPU peak"] = torch.cuda.max_memory_allocated(module.device)
        return found

    def _look(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        step = trainer.global_step
        if step not in self._at:
            return
        self._at.discard(step)
        plugin = trainer.precision_plugin
        assert isinstance(plugin, PrecisionPlugin)
        assert isinstance(module, RecipeModule)
        batch = {n: t.to(module.device) for n, t in plugin.convert_input(self._batch).items()}

        def forward() -> Tensor:
            with plugin.forward_context():
                loss: Tensor = module.recipe.loss(module(batch), batch)
            return loss

        self.probes.append(
            look(
                module.precision_root,
                forward,
                plugin.backward_context,
                step=step,
                scale=plugin.loss_scale() or 1.0,
            )
        )
