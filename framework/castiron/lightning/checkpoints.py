"""Checkpoints of a run: `last.ckpt` to resume from, `best.ckpt` to use; each appears whole or not at all."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import distributed

from castiron.diagnostics import Finding, ManifestError, Place, finding
from castiron.lightning.averaging import averaged_weights
from castiron.lightning.manifest import expected_of, manifest_of, verified
from castiron.lightning.module import RecipeModule
from castiron.lightning.sharding import load_whole
from castiron.torch.weights import export_weights
from castiron.torch.weights import load_weights as read_into
from castiron.training.checkpoint_file import damaged, new_file, seal
from castiron.training.checkpoints import rotate
from castiron.training.manifest import Manifest, asset_digests
from castiron.training.manifest_check import OnMismatch
from castiron.training.run_directory import ASSETS


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


def random_states() -> dict[str, Any]:
    """This process's generators; where several train, those of all, which all have to call it."""
    own = random_state()
    if not _several():
        return own
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, own)
    return {"ranks": found}


def restore_random_states(state: dict[str, Any]) -> bool:
    """Put this process's generators back to what `random_states` returned.

    → False where another number of processes returned it: no generator goes on then where it was.
    """
    world, rank = (distributed.get_world_size(), distributed.get_rank()) if _several() else (1, 0)
    states = state.get("ranks", [state])
    if len(states) == world:
        restore_random_state(states[rank])
        return True
    torch.manual_seed(torch.initial_seed() + rank)
    return False


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint of a training holds, its tensors mapped from the file. Runs no code from the file.

    Raises:
        ManifestError: the file is missing or damaged (C601), asks for code to be run (C617), or is none of
            castiron's (C602).
    """
    checkpoint, manifest, _ = verified(path, None, mmap=True)
    if manifest is None or not isinstance(checkpoint.get("state_dict"), dict):
        raise without_manifest(path)
    return checkpoint


def load_weights(
    module: RecipeModule,
    path: Path,
    *,
    device: str = "auto",
    assets: Mapping[str, str] | None = None,
    on_mismatch: OnMismatch = "refuse",
) -> list[Finding]:
    """Load a checkpoint's weights, averaged where the run kept an average. → what there is to tell.

    Args:
        assets: file that the recipe learned → its digest; compared with those of the checkpoint.

    Raises:
        ManifestError: the file is damaged, or of another model, recipe or policy (C6xx). Nothing is loaded.
    """
    expected = expected_of(module, module.policy, device=device, recipe=module.recipe.name, assets=assets)
    weights = dataclasses.replace(expected, state=None, scaling=None)
    checkpoint, manifest, told = verified(path, weights, on_mismatch, mmap=True)
    if manifest is None:
        raise without_manifest(path)
    average = {f"model.{name}": value for name, value in averaged_weights(checkpoint).items()}
    try:
        load_whole(module, {**checkpoint["state_dict"], **average})
    except RuntimeError as e:
        raise damaged(path, " ".join(str(e).split())) from None
    return told


def load_foreign(module: RecipeModule, path: Path, device: str, on_mismatch: OnMismatch) -> list[Finding]:
    """Load weights from a file of any origin into a recipe's model. → what there is to tell.

    Raises:
        ManifestError: as `castiron.torch.load_weights`.
    """
    return read_into(module.model, path, module.policy, on_mismatch=on_mismatch, device=device)


def export(checkpoint: Path, path: Path) -> Manifest:
    """Write the weights of a checkpoint, averaged where the run kept an average, as safetensors.

    Raises:
        ManifestError: the checkpoint is damaged or none of castiron's.
        RunError: the file cannot be written (X819).
    """
    state, manifest, _ = verified(checkpoint, None, mmap=True)
    if manifest is None:
        raise without_manifest(checkpoint)
    average = averaged_weights(state)
    weights = {}
    for name, value in state["state_dict"].items():
        own = name.removeprefix("model.")
        weights[own] = average[own].to(value.dtype) if own in average else value
    named = {
        kind: {n.removeprefix("model."): r for n, r in records.items()}
        for kind, records in manifest.tensors.items()
        if kind in ("parameters", "buffers")
    }
    manifest = manifest.model_copy(update={"tensors": named})
    export_weights(weights, manifest, path)
    return manifest


def without_manifest(path: Path) -> ManifestError:
    """The error for a file that castiron did not write (C602)."""
    return ManifestError(
        finding("C602", "The checkpoint carries no precision manifest.", place=Place(file=str(path)))
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


def write_checkpoint(state: dict[str, Any], manifest: Manifest, path: Path, *, keep: int = 1) -> None:
    """Write a checkpoint under a temporary name, with its manifest, sealed and synced; then give it its name.

    Args:
        keep: how many of this name are kept: those that were there move on to `<name>-2`, `<name>-3` ….

    Raises:
        RunError: the disk is full, or the folder cannot be written (X819). What was there stays.
    """
    with new_file(path, replacing=lambda: rotate(path, keep)) as file:
        _save(state, file)
        seal(file, manifest.as_json())


class RunCheckpoints(Checkpoint):
    """Keeps the last and the best states of a run.

    Args:
        folder: where `last.ckpt` and `best.ckpt` go, and the ones before them: `last-2.ckpt` ….
        monitor: validation metric; `mode` says whether less or more of it is better.
        every: optimizer steps between writes of `last.ckpt`; None: after each validation.
        keep_last, keep_best: how many are kept.
        recipe: name of what trains.
    """

    def __init__(
        self,
        folder: Path,
        *,
        monitor: str,
        mode: Literal["min", "max"],
        every: int | None = None,
        keep_last: int = 2,
        keep_best: int = 1,
        recipe: str | None = None,
    ) -> None:
        self.folder = folder
        self.monitor, self.mode, self.every = monitor, mode, every
        self.keep = {"last": keep_last, "best": keep_best}
        self.recipe = recipe
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
        """Write the state of a training whole, or not at all. Of several processes, which all have to call
        it, the first writes.

        Raises:
            RunError: the disk is full, or the folder cannot be written (X819).
        """
        state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        if trainer.is_global_zero:
            assets = asset_digests(self.folder.parent / ASSETS)
            manifest = manifest_of(trainer, state, recipe=self.recipe, assets=assets)
            write_checkpoint(state, manifest, path, keep=self.keep.get(path.stem, 1))
        trainer.strategy.barrier()  # it is there when any of several processes asks for it

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
            "random": random_states(),
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
            restore_random_states(loaded["random"])
            self._loaded = None
        elif trainer.global_rank > 0:
            # Other random numbers than rank 0's, say for dropout; so far all have drawn the same.
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)
