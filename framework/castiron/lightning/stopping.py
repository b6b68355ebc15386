"""A training that is told to stop finishes its step, leaves a checkpoint, and says so."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from castiron.lightning.checkpoints import RunCheckpoints, validation_follows

Reason = Literal["interrupted", "stopped"]


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
        if not validation_follows(trainer):
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # A validation under way is finished: half of one cannot be resumed.
        if trainer.state.fn == "fit":
            self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        if self._asked:
            self._checkpoints.write_last(trainer)
            raise TrainingStopped(self._asked)
