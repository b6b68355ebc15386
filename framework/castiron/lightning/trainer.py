"""Lightning's Trainer under a precision policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from castiron.diagnostics import ConfigError, Place, finding
from castiron.lightning.checkpoint_io import SealedCheckpoints
from castiron.lightning.fsdp import FSDPPrecisionPlugin, is_fsdp
from castiron.lightning.guard import NumericGuard
from castiron.lightning.health import NumericHealth
from castiron.lightning.logger import RunLogger, run_name
from castiron.lightning.precision import PrecisionPlugin
from castiron.lightning.profiling import NoProfiler
from castiron.lightning.run_files import RunFiles
from castiron.policy import PrecisionPolicy
from castiron.training.manifest_check import OnMismatch


class Trainer(pl.Trainer):
    """`lightning.Trainer` with a policy in the place of `precision`; takes any LightningModule unchanged.

    Example:
        >>> Trainer(policy="bf16-mixed", max_epochs=3).fit(module, loader)

    Args:
        policy: a policy, a preset's name, a short string, or a mapping.
        guard: the policy's `guard` section, said otherwise.
        health: the policy's `health` section, said otherwise.
        on_mismatch: what `fit(ckpt_path=…)` does with a checkpoint of another policy: "refuse"
            (ManifestError, a table), or "cast", and tell it. Every checkpoint carries a precision manifest.
        **arguments: everything else that `lightning.Trainer` takes. By default metrics go to TensorBoard and
            `metrics.jsonl` in `<default_root_dir>/runs/<module>/<time>`.

    Raises:
        ConfigError: `precision=` is given, or a second precision plugin: the policy says it.
        pydantic.ValidationError: the policy is not valid.
    """

    def __init__(
        self,
        policy: PrecisionPolicy | str | Mapping[str, Any] = "float32",
        *,
        guard: Mapping[str, Any] | None = None,
        health: Mapping[str, Any] | None = None,
        on_mismatch: OnMismatch = "refuse",
        **arguments: Any,
    ) -> None:
        declared = PrecisionPolicy.model_validate(policy)
        changes = {name: dict(section) for name, section in (("guard", guard), ("health", health)) if section}
        self.policy = declared.replace(**changes) if changes else declared
        if arguments.get("precision") is not None:
            raise ConfigError(
                finding(
                    "X815",
                    "The number formats of this Trainer are its policy's.",
                    place=Place(key="precision"),
                    expected="policy=… alone",
                    received=f"precision={arguments['precision']!r}",
                    remedy=f"Write Trainer(policy={str(arguments.pop('precision'))!r}, …).",
                )
            )
        given = arguments.pop("plugins", None)
        plugins = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
        if any(isinstance(p, Precision) for p in plugins):
            raise ConfigError(
                finding(
                    "X815",
                    "The number formats of this Trainer are its policy's.",
                    place=Place(key="plugins"),
                    expected="no precision plugin beside policy=…",
                    received=", ".join(type(p).__name__ for p in plugins if isinstance(p, Precision)),
                    remedy="Leave it out, or use lightning.Trainer(plugins=[PrecisionPlugin(policy)]).",
                )
            )
        callbacks = arguments.pop("callbacks", None) or []
        callbacks = list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]
        if arguments.get("logger") in (None, True):
            root = arguments.get("default_root_dir") or Path.cwd()
            logger = RunLogger(root)
            arguments["logger"] = logger
            callbacks.insert(0, RunFiles(logger))
        if not any(isinstance(c, NumericHealth) for c in callbacks):
            callbacks.insert(0, NumericHealth(self.policy))
        if not any(isinstance(c, NumericGuard) for c in callbacks):
            # First of all: what counts steps or averages weights must not see a held one.
            callbacks.insert(0, NumericGuard(self.policy))
        arguments["callbacks"] = callbacks
        if arguments.get("profiler") is None:
            arguments["profiler"] = NoProfiler()
        plugin = FSDPPrecisionPlugin if is_fsdp(arguments.get("strategy")) else PrecisionPlugin
        if not any(isinstance(p, CheckpointIO) for p in plugins) and _writes_whole(arguments.get("strategy")):
            plugins.append(SealedCheckpoints(on_mismatch=on_mismatch))
        super().__init__(plugins=[*plugins, plugin(self.policy)], **arguments)
        for given in plugins:
            if isinstance(given, SealedCheckpoints):
                given.attach(self)

    def fit(self, model: pl.LightningModule, *arguments: Any, **named: Any) -> None:
        # Before Lightning asks the logger for its folder.
        if isinstance(self.logger, RunLogger):
            self.logger.name = run_name(model)
        super().fit(model, *arguments, **named)


def _writes_whole(strategy: Any) -> bool:
    """Whether a strategy saves checkpoints as one file, by way of Lightning's CheckpointIO."""
    if strategy is None or isinstance(strategy, str):
        return not any(word in str(strategy) for word in ("fsdp", "deepspeed", "model_parallel"))
    return isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
