"""A module's own `training_step`, run for its loss alone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from torch import Tensor


def loss_of_step(module: pl.LightningModule, batch: Any, index: int) -> Tensor | None:
    """The loss that `training_step` gives for a batch; None where it gives none.

    Raises:
        TypeError: it gives something else.
    """
    names = inspect.signature(module.training_step).parameters
    told = {"batch_idx": index, "dataloader_idx": 0}
    outputs = module.training_step(batch, **{k: v for k, v in told.items() if k in names})
    loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
    if loss is not None and not isinstance(loss, Tensor):
        raise TypeError(f"Expected a loss from training_step. Received {type(loss).__name__}.")
    return loss
