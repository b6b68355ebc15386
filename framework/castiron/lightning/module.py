"""A recipe as a LightningModule: the steps, the losses and metrics, the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, distributed

from castiron.policy import PrecisionPolicy
from castiron.torch.loss import to_loss_dtype
from castiron.torch.optimizers import build_optimizer
from castiron.torch.schedules import build_schedule
from castiron.training.recipe import Recipe

Batch = Mapping[str, Tensor]


class LossMean:
    """A mean of losses, weighted by rows, taken in the policy's accumulate dtype.

    The losses stay on the device until `take` reads their mean, which waits for it; adding costs nothing.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._losses: list[Tensor] = []
        self._rows: list[int] = []

    def add(self, loss: Tensor, rows: int) -> None:
        """Add the mean loss (a scalar) of so many rows."""
        self._losses.append(loss.detach())
        self._rows.append(rows)

    def drop(self, count: int) -> int:
        """Take the last so many losses back. → their rows."""
        kept = max(len(self._rows) - count, 0)
        rows = sum(self._rows[kept:])
        del self._losses[kept:], self._rows[kept:]
        return rows

    def take(self) -> float | None:
        """The mean since the last call, and start anew; None where nothing was added.

        Where several processes train it is that over all of them, which all have to call it.
        """
        if not self._losses:
            return None
        losses = torch.stack(self._losses).to(self._dtype)
        rows = torch.tensor(self._rows, dtype=self._dtype, device=losses.device)
        sums = torch.stack([(losses * rows).sum(), rows.sum()])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(sums)
        self._losses.clear()
        self._rows.clear()
        return float(sums[0] / sums[1])


class RecipeModule(pl.LightningModule):
    """Trains the model of a recipe. The plan is applied to `model`, so that layer rules name its layers.

    Nothing is logged from the steps: losses and metrics stay on the device until somebody takes them
    (`take_train_loss`, `results`), because Lightning's `self.log` costs a third of a millisecond a step.
    """

    def __init__(self, recipe: Recipe, policy: PrecisionPolicy, total_steps: int = 0) -> None:
        """
        Args:
            total_steps: optimizer steps of the training, for schedules. Lightning's own estimate sets the
                loaders up before a checkpoint's position in them is restored, which is then lost.
        """
        super().__init__()
        self.total_steps = total_steps
        self.recipe = recipe
        self.schema = recipe.schema()
        """The data contract, by which the precision plugin knows what a field is for."""
        self.policy = policy
        self.model = recipe.model()
        self.results: dict[str, float] = {}
        """Metrics of the last evaluation, by name; `loss` among them."""
        self._loss_dtype = getattr(torch, policy.loss)
        accumulate = getattr(torch, policy.accumulate)
        self._train_loss = LossMean(accumulate)
        self._eval_loss = LossMean(accumulate)
        metrics = dict(recipe.metrics())
        for metric in metrics.values():
            metric.set_dtype(accumulate)
        # A plain dict: metrics are no part of the model, and not of its checkpoints.
        self._metrics = metrics
        self.items = 0
        """Rows trained on so far, in this process."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning sets this before each of some forty hooks a step; torch's own __setattr__ is slow.
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def precision_root(self) -> torch.nn.Module:
        """The module that the plan is about."""
        model: torch.nn.Module = self.model
        return model

    def forward(self, batch: Batch) -> Any:
        """The model's outputs for a batch, floating-point ones in the policy's loss dtype."""
        return to_loss_dtype(self.model(*self.recipe.inputs(batch)), self._loss_dtype)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss: Tensor = self.recipe.loss(self(batch), batch)
        rows = len(batch["row"])
        self._train_loss.add(loss, rows)
        self.items += rows
        return loss

    def take_train_loss(self) -> float | None:
        """Mean training loss per row since the last call. Waits for the device."""
        return self._train_loss.take()

    def forget(self, batches: int) -> None:
        """The last so many batches were not learnt from: their step was held."""
        self.items -= self._train_loss.drop(batches)

    # --- evaluation --------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._begin_evaluation()

    def on_test_epoch_start(self) -> None:
        self._begin_evaluation()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._end_evaluation()

    def on_test_epoch_end(self) -> None:
        self._end_evaluation()

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Any]:
        """Row numbers [B] and the outputs for them."""
        return batch["row"], self(batch)

    def _begin_evaluation(self) -> None:
        self._eval_loss.take()
        for metric in self._metrics.values():
            metric.to(self.device)
            metric.reset()

    def _evaluate(self, batch: Batch) -> None:
        outputs = self(batch)
        self._eval_loss.add(self.recipe.loss(outputs, batch), len(batch["row"]))
        predictions, targets = self.recipe.predictions(outputs), self.recipe.targets(batch)
        for metric in self._metrics.values():
            metric.update(predictions, targets)

    def _end_evaluation(self) -> None:
        loss = self._eval_loss.take()
        self.results = {} if loss is None else {"loss": loss}
        self.results |= {name: float(metric.compute()) for name, metric in self._metrics.items()}

    # --- optimizer ---------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        config = self.recipe.run.optimizer
        optimizer = self.recipe.optimizer(self.model) or build_optimizer(self.model, config)
        schedule = build_schedule(optimizer, config.schedule, self.total_steps)
        if schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
