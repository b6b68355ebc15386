"""A training that is told to stop finishes its step, leaves a checkpoint, and says so."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, distributed

from castiron.lightning.checkpoints import RunCheckpoints, validation_follows
from castiron.training.stopping import Reason, StopRequests

_CODES: tuple[Reason | None, ...] = (None, "stopped", "interrupted")


class TrainingStopped(Exception):
    """Training ended early on request; a resumable checkpoint was written."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


class GracefulStop(StopRequests, Checkpoint):
    """Turns Ctrl-C, SIGTERM and SIGUSR1 into a checkpoint after the step in progress, or the validation.

    (A `Checkpoint` in Lightning's eyes, because those are called last: after the best state is kept.)
    """

    def __init__(self, checkpoints: RunCheckpoints) -> None:
        super().__init__()
        self._checkpoints = checkpoints
        self._asking: tuple[Any, Tensor] | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        asked = self._asked_anywhere(trainer)
        if not validation_follows(trainer):
            self._stop_if_asked(trainer, asked)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # A validation under way is finished: half of one cannot be resumed.
        if trainer.state.fn == "fit":
            self._asked_anywhere(trainer)
            self._stop_if_asked(trainer, self._asked_anywhere(trainer))

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._asking is not None:
            self._asking[0].wait()
            self._asking = None

    def _asked_anywhere(self, trainer: pl.Trainer) -> Reason | None:
        """Whether to stop; of several processes, which all have to call it, whether any was asked to before
        the last call. They ask each other while they compute, and wait for nothing."""
        if trainer.world_size == 1:
            return self.asked
        asked = None
        if self._asking is not None:
            work, flag = self._asking
            work.wait()
            asked = _CODES[int(flag)]
        flag = torch.tensor(_CODES.index(self.asked))
        work = distributed.all_reduce(flag, distributed.ReduceOp.MAX, async_op=True)
        self._asking = (work, flag)
        return asked

    def _stop_if_asked(self, trainer: pl.Trainer, asked: Reason | None) -> None:
        if asked:
            self.on_train_end(trainer, trainer.lightning_module)
            self._checkpoints.write_last(trainer)
            raise TrainingStopped(asked)
