"""Checkpoints as Lightning writes and reads them: sealed, with a manifest, verified before loading."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from castiron.diagnostics import Finding
from castiron.lightning.checkpoints import write_checkpoint
from castiron.lightning.manifest import expected_of, manifest_of, verified
from castiron.lightning.precision import PrecisionPlugin
from castiron.training.manifest_check import OnMismatch


class SealedCheckpoints(TorchCheckpointIO):
    """What `castiron.lightning.Trainer` saves and loads local files with.

    Args:
        ready: what is loaded, where it was read and verified already.
        on_mismatch: what is done with tensors of other formats than the policy declares.
        tell: gets what there is to say of a checkpoint that was loaded.
    """

    def __init__(
        self,
        ready: Mapping[str, Any] | None = None,
        on_mismatch: OnMismatch = "refuse",
        tell: Callable[[list[Finding]], None] | None = None,
    ) -> None:
        super().__init__()
        self._ready = ready
        self._on_mismatch = on_mismatch
        self._tell = tell
        self._trainer: Callable[[], pl.Trainer | None] = lambda: None

    def attach(self, trainer: pl.Trainer) -> None:
        """Say whose checkpoints these are."""
        self._trainer = weakref.ref(trainer)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint whole or not at all.

        Raises:
            RunError: the disk is full, or the folder cannot be written (X819).
        """
        trainer = self._trainer()
        if trainer is None or storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        write_checkpoint(checkpoint, manifest_of(trainer, checkpoint), Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """What a checkpoint holds, verified.

        A file without a manifest is read as data only, unless `weights_only=False` says that it is trusted.

        Raises:
            ManifestError: it is damaged, does not fit, or asks for code to be run (C6xx).
        """
        if self._ready is not None:
            state, self._ready = self._ready, None
            return dict(state)
        if weights_only is False or "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only)
        trainer = self._trainer()
        expected = None
        if trainer is not None and trainer.lightning_module is not None:
            plugin = trainer.precision_plugin
            if isinstance(plugin, PrecisionPlugin):
                device = str(trainer.strategy.root_device)
                expected = expected_of(trainer.lightning_module, plugin.policy, device=device)
        checkpoint, _, told = verified(Path(path), expected, self._on_mismatch)
        if told and self._tell is not None:
            self._tell(told)
        return checkpoint
