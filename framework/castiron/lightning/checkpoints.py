"""Checkpoints of a run: `last.ckpt` to resume from, `best.ckpt` to use; each appears whole or not at all."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint

from castiron.diagnostics import Place, RunError, finding
from castiron.lightning.averaging import averaged_weights
from castiron.lightning.module import RecipeModule
from castiron.training.run_directory import written


def random_state() -> dict[str, Any]:
    """The state of Python's, NumPy's and torch's generators, in types that load without running code."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Put the generators back to what `random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, its tensors mapped from the file. Runs no code from the file.

    Raises:
        RunError: the file is missing or damaged (X822).
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        checkpoint["state_dict"].keys(), checkpoint["global_step"]
    except (RuntimeError, KeyError, TypeError, AttributeError, EOFError, OSError, UnpicklingError) as e:
        raise _not_loaded(path, e) from e
    return checkpoint


def load_weights(module: RecipeModule, path: Path) -> None:
    """Load a checkpoint's weights, averaged where the run kept an average.

    Raises:
        RunError: the file is damaged, or is of another model (X822).
    """
    checkpoint = read_checkpoint(path)
    average = {f"model.{name}": value for name, value in averaged_weights(checkpoint).items()}
    try:
        module.load_state_dict({**checkpoint["state_dict"], **average})
    except RuntimeError as e:
        raise _not_loaded(path, e) from e


def _not_loaded(path: Path, error: Exception) -> RunError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return RunError(
        finding("X822", f"The checkpoint cannot be loaded: {reason}", place=Place(file=str(path)))
    )


def validation_follows(trainer: pl.Trainer) -> bool:
    """Whether Lightning validates right after this training batch.

    What it saves between the two it resumes after both: a state for resuming is then taken after validation.
    """
    loop = trainer.fit_loop
    fetcher = loop._data_fetcher
    return fetcher is not None and loop.epoch_loop._should_check_val_fx(fetcher)


def _save(state: dict[str, Any], file: IO[bytes]) -> None:
    try:
        torch.save(state, file)
    except RuntimeError as e:
        # torch closes its archive on the way out, and hides what the file system said behind that error
        if isinstance(e.__context__, OSError):
            raise e.__context__ from None
        raise


class RunCheckpoints(Checkpoint):
    """Keeps the last and the best state of a run.

    Args:
        folder: where `last.ckpt` and `best.ckpt` go.
        monitor: validation metric; `mode` says whether less or more of it is better.
        every: optimizer steps between writes of `last.ckpt`; None: after each validation.
    """

    def __init__(
        self, folder: Path, *, monitor: str, mode: Literal["min", "max"], every: int | None = None
    ) -> None:
        self.folder = folder
        self.monitor, self.mode, self.every = monitor, mode, every
        self.best_score: float | None = None
        self.best_step: int | None = None
        self.best_metrics: dict[str, float] = {}
        self._last_written = -1

    @property
    def last(self) -> Path:
        return self.folder / "last.ckpt"

    @property
    def best(self) -> Path:
        return self.folder / "best.ckpt"

    def write(self, trainer: pl.Trainer, path: Path) -> None:
        """Write the state of a training under a temporary name, sync it, and give it its name.

        A checkpoint that is there already stays whole until then.

        Raises:
            RunError: the disk is full, or the folder cannot be written (X819).
        """
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        with written(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("wb") as file:
                    _save(state, file)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            descriptor = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def write_last(self, trainer: pl.Trainer) -> None:
        """Write `last.ckpt`, unless this very step is in it already."""
        if trainer.global_step != self._last_written:
            self.write(trainer, self.last)
            self._last_written = trainer.global_step

    # --- hooks -------------------------------------------------------------------------------------

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if self._is_due(trainer.global_step) and not validation_follows(trainer):
            self.write_last(trainer)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.sanity_checking or (not trainer.training and trainer.state.fn != "fit"):
            return
        assert isinstance(module, RecipeModule)
        score = module.results.get(self.monitor)
        if score is not None and self._is_better(score):
            self.best_score, self.best_step = score, trainer.global_step
            self.best_metrics = dict(module.results)
            self.write(trainer, self.best)
        if self.every is None or self._is_due(trainer.global_step):
            self.write_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.write_last(trainer)

    def _is_due(self, step: int) -> bool:
        return self.every is not None and step > 0 and step % self.every == 0

    def _is_better(self, score: float) -> bool:
        if math.isnan(score):
            return False
        if self.best_score is None:
            return True
        return score < self.best_score if self.mode == "min" else score > self.best_score

    # --- state -------------------------------------------------------------------------------------

    def on_save_checkpoint(
        self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["castiron"] = {
            "random": random_state(),
            "best": [self.best_score, self.best_step, self.best_metrics],
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._loaded = checkpoint.get("castiron")
        if self._loaded:
            self.best_score, self.best_step, self.best_metrics = self._loaded["best"]

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # The last moment before the first batch: set-up draws random numbers too.
        if loaded := getattr(self, "_loaded", None):
            restore_random_state(loaded["random"])
            self._loaded = None
