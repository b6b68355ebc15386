"""The audit of a recipe: before the first step, every so many steps, and without training at all."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn

from castiron.lightning.loaders import TorchLoader
from castiron.lightning.module import RecipeModule
from castiron.lightning.precision import PrecisionPlugin
from castiron.lightning.sharding import Sharded
from castiron.policy import Plan
from castiron.torch.audit.api import audit
from castiron.torch.audit.continuous import Observer
from castiron.torch.inputs import cast_inputs
from castiron.torch.loss import to_loss_dtype
from castiron.training.audit import AuditReport
from castiron.training.backend import Job
from castiron.training.recipe import Recipe
from castiron.training.run_directory import AUDIT

_WARM_UP = 10
"""Steps before the first one that is looked at while training."""


def audit_recipe(
    module: RecipeModule, batch: Mapping[str, Tensor], plan: Plan, optimizers: list[Any] | None = None
) -> AuditReport:
    """Trace one training step of a recipe's model.

    Args:
        batch: one of the recipe's, as it comes from the data contract.
    """
    recipe = module.recipe
    dtype = module._loss_dtype

    def call(model: nn.Module, batch: Any) -> Any:
        return model(*recipe.inputs(batch))

    def loss(outputs: Any, batch: Any) -> Tensor:
        taken: Tensor = recipe.loss(to_loss_dtype(outputs, dtype), batch)
        return taken

    return audit(
        module.precision_root,
        cast_inputs(batch, plan.policy, module.schema),
        plan=plan,
        call=call,
        loss=loss,
        optimizer=optimizers or None,
        shapes=_shapes(recipe),
    )


def _shapes(recipe: Recipe) -> Mapping[str, str]:
    """What a recipe declares of its own model: a subclass with another model says its shapes itself."""
    for cls in type(recipe).__mro__:
        if "shapes" in vars(cls):
            return recipe.shapes()
        if "model" in vars(cls):
            return {}
    return {}


def first_batch(loader: TorchLoader) -> Mapping[str, Tensor]:
    """A batch to look at; the loader goes on as if none had been taken."""
    state = loader.state_dict()
    try:
        return next(iter(TorchLoader(loader.batches)))
    finally:
        loader.load_state_dict(state)


class Audit(pl.Callback):
    """Audits before the first step; strict stops there. Then looks at one step in `audit.every`.

    What was found is in `audit.json`, which says at the end which steps were looked at as well.
    """

    def __init__(self, job: Job, loader: TorchLoader) -> None:
        self._job, self._loader = job, loader
        self._report: AuditReport | None = None
        self._observer: Observer | None = None
        self._watching = contextlib.ExitStack()

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        enforce = self._job.config.precision.enforce
        plugin = trainer.precision_plugin
        if enforce.level == "off" or isinstance(trainer.strategy, FSDPStrategy | Sharded):
            return  # a sharded model has no parameters of its own to trace
        assert isinstance(module, RecipeModule)
        assert isinstance(plugin, PrecisionPlugin)
        assert plugin.plan is not None
        batch = trainer.strategy.batch_to_device(first_batch(self._loader))
        report = self._report = audit_recipe(module, batch, plugin.plan, trainer.optimizers)
        self._write()
        if enforce.level == "strict":
            report.check()
        shown = [f for f in report.findings if f.severity != "info"]
        if shown:
            self._job.reporter.findings(shown)
        if enforce.every is not None and not self._job.config.trainer.compile:
            self._observer = Observer(module.precision_root, plugin.plan, report)

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        every = self._job.config.precision.enforce.every
        step = trainer.global_step
        if self._observer is None or every is None or step < _WARM_UP or (step - _WARM_UP) % every:
            return
        self._watching.enter_context(self._observer.watching(batch, step))

    def on_before_backward(self, trainer: pl.Trainer, module: pl.LightningModule, loss: Tensor) -> None:
        if self._observer is not None:
            self._observer.backward_begins()

    def on_after_backward(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._end()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._end()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._watching.close()
        self._write()

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._write()

    def _end(self) -> None:
        self._watching.close()
        if self._observer is None or self._report is None:
            return
        new = self._observer.take()
        if new:
            self._report = self._observer.report
            self._job.reporter.findings(new)

    def _write(self) -> None:
        if self._observer is not None:
            self._report = self._observer.report
        if self._report is not None:
            self._job.run.write_text(AUDIT, self._report.to_json())
