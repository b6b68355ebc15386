"""What a response to a held step does to a live training: go back, lower the rate, widen a layer."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from castiron.lightning.averaging import AverageWeights
from castiron.lightning.counts import Counts, counts, put_back
from castiron.lightning.precision import PrecisionPlugin
from castiron.policy import Plan
from castiron.training.responses import promoted
from castiron.training.writing import written


class RollbackPoints:
    """States that a rollback may go back to: one every so many steps, on disk, the latest three.

    Args:
        folder: where they are kept.
        steps: optimizer steps between two of them.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self._folder, self._steps = folder, steps
        self._points: deque[tuple[int, Path, Counts]] = deque()

    def keep(self, trainer: pl.Trainer) -> None:
        """Keep the present state where one is due. Call it between steps.

        Raises:
            RunError: the disk is full, or the folder cannot be written (X819).
        """
        step = trainer.global_step
        if step % self._steps or (self._points and self._points[-1][0] == step):
            return
        path = self._folder / f"rollback-{step}.ckpt"
        with written(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp")
            torch.save(_state(trainer), temporary)
            temporary.replace(path)
        self._points.append((step, path, counts(trainer)))
        if len(self._points) > 3:
            self._points.popleft()[1].unlink(missing_ok=True)

    def go_back(self, trainer: pl.Trainer, at_least: int) -> int:
        """Go back to the latest state that is at least so many steps old, or to the oldest there is.

        → how many steps back that is.
        """
        now = trainer.global_step
        while len(self._points) > 1 and now - self._points[-1][0] < at_least:
            self._points.pop()[1].unlink(missing_ok=True)
        step, path, kept = self._points[-1]
        state = torch.load(path, map_location=trainer.strategy.root_device, weights_only=True)
        _load(trainer, state)
        put_back(trainer, kept)
        return now - step

    def clear(self) -> None:
        """Training is over: take the files away."""
        while self._points:
            self._points.pop()[1].unlink(missing_ok=True)


def lower_learning_rate(trainer: pl.Trainer, factor: float) -> None:
    """Multiply the learning rates of all groups, now and in what schedules make of them later."""
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor
            if "initial_lr" in group:
                group["initial_lr"] = group["initial_lr"] * factor
    for config in trainer.lr_scheduler_configs:
        _lower(config.scheduler, factor)


def promote(trainer: pl.Trainer, layer: str) -> Plan:
    """Let a layer compute in float32 from here on. → the plan in force now.

    Raises:
        PlanError: the plan does not allow it.
    """
    plugin = trainer.precision_plugin
    assert isinstance(plugin, PrecisionPlugin)
    plugin.change_policy(trainer.lightning_module, promoted(plugin.policy, layer))
    assert plugin.plan is not None
    return plugin.plan


def _lower(schedule: Any, factor: float) -> None:
    for inner in getattr(schedule, "_schedulers", ()):
        _lower(inner, factor)
    if hasattr(schedule, "base_lrs"):
        schedule.base_lrs = [rate * factor for rate in schedule.base_lrs]
    if getattr(schedule, "_last_lr", None) is not None:
        schedule._last_lr = [rate * factor for rate in schedule._last_lr]


def _state(trainer: pl.Trainer) -> dict[str, Any]:
    plugin = trainer.precision_plugin
    return {
        "module": trainer.lightning_module.state_dict(),
        "optimizers": [o.state_dict() for o in trainer.optimizers],
        "schedules": [c.scheduler.state_dict() for c in trainer.lr_scheduler_configs],
        "scaler": plugin.state_dict() if isinstance(plugin, PrecisionPlugin) else None,
        "averages": [c.state() for c in _averages(trainer)],
    }


def _load(trainer: pl.Trainer, state: dict[str, Any]) -> None:
    trainer.lightning_module.load_state_dict(state["module"])
    for optimizer, kept in zip(trainer.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    for config, kept in zip(trainer.lr_scheduler_configs, state["schedules"], strict=True):
        config.scheduler.load_state_dict(kept)
    plugin = trainer.precision_plugin
    if isinstance(plugin, PrecisionPlugin):
        plugin.load_state_dict(state["scaler"])
    for average, kept in zip(_averages(trainer), state["averages"], strict=True):
        average.load(kept)


def _averages(trainer: pl.Trainer) -> list[AverageWeights]:
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [c for c in callbacks if isinstance(c, AverageWeights)]
