"""A training that is told to stop finishes its step, leaves a checkpoint, and says so."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, distributed

from castiron.lightning.checkpoints import RunCheckpoints, validation_follows

Reason = Literal["interrupted", "stopped"]
_CODES: tuple[Reason | None, ...] = (None, "stopped", "interrupted")


class TrainingStopped(Exception):
    """Training ended early on request; a resumable checkpoint was written."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


class GracefulStop(Checkpoint):
    """Turns Ctrl-C, SIGTERM and SIGUSR1 into a checkpoint after the step in progress, or the validation.

    (A `Checkpoint` in Lightning's eyes, because those are called last: after the best state is kept.)

    A second Ctrl-C does not wait: it raises `KeyboardInterrupt` where training stands. Signal handlers are
    installed for the time of `fit` only, and only in the main thread (elsewhere Python allows none).
    """

    _REASONS: dict[int, Reason] = {
        signal.SIGINT: "interrupted",
        signal.SIGTERM: "stopped",
        signal.SIGUSR1: "stopped",  # what Slurm is commonly asked to send before time is up
    }

    def __init__(self, checkpoints: RunCheckpoints) -> None:
        self._checkpoints = checkpoints
        self._asking: tuple[Any, Tensor] | None = None
        self._asked: Reason | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            for number in self._REASONS:
                self._former[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = self._REASONS[number]

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
            return self._asked
        asked = None
        if self._asking is not None:
            work, flag = self._asking
            work.wait()
            asked = _CODES[int(flag)]
        flag = torch.tensor(_CODES.index(self._asked))
        work = distributed.all_reduce(flag, distributed.ReduceOp.MAX, async_op=True)
        self._asking = (work, flag)
        return asked

    def _stop_if_asked(self, trainer: pl.Trainer, asked: Reason | None) -> None:
        if asked:
            self.on_train_end(trainer, trainer.lightning_module)
            self._checkpoints.write_last(trainer)
            raise TrainingStopped(asked)
