"""An average of the weights: kept while training, evaluated in their place, saved beside them."""

from __future__ import annotations

import contextlib
from typing import Any

import lightning.pytorch as pl

from castiron.lightning.module import RecipeModule
from castiron.torch.ema import WeightAverage

AVERAGE = "castiron_average"
"""Key of a checkpoint: the state of the average."""


class AverageWeights(pl.Callback):
    """Keeps an exponential moving average of a recipe's model, updated after each optimizer step.

    Validation and test measure the average, and the best checkpoint is chosen by it.
    """

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._average: WeightAverage | None = None
        self._loaded: dict[str, Any] | None = None
        self._step = 0
        self._swap = contextlib.ExitStack()

    def state(self) -> dict[str, Any]:
        """The average as it is; empty where training has not begun."""
        return {} if self._average is None else self._average.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        if self._average is not None:
            self._average.load_state_dict(state)

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, RecipeModule)
        self._average = WeightAverage(module.precision_root, self._decay)
        if self._loaded is not None:
            self._average.load_state_dict(self._loaded)
            self._loaded = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            assert self._average is not None
            self._average.update()

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and self._average is not None:
            self._swap.enter_context(self._average.swapped_in())

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._swap.close()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._swap.close()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._average is not None:
            checkpoint[AVERAGE] = self._average.state_dict()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._loaded = checkpoint.get(AVERAGE)


def averaged_weights(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The averages in a checkpoint, by their names in the model; empty where none were kept."""
    state = checkpoint.get(AVERAGE)
    return {**state["averages"], **state["copies"]} if state else {}
