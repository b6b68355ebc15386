"""The files of a run for any LightningModule: `plan.json`, `environment.json`, `summary.json`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from castiron.diagnostics import Finding
from castiron.health import tags
from castiron.lightning.guard import NumericGuard, guard_of
from castiron.lightning.logger import RunLogger
from castiron.lightning.opening import write_precision
from castiron.lightning.precision import PrecisionPlugin
from castiron.torch.modules import describe
from castiron.training.environment import describe_environment
from castiron.training.incident import Incident
from castiron.training.incident_text import as_markdown
from castiron.training.run_directory import ENVIRONMENT, PLAN, SUMMARY


class RunFiles(pl.Callback):
    """Writes into the directory of a `RunLogger` what every castiron run has."""

    def __init__(self, logger: RunLogger) -> None:
        self._logger = logger
        self._started = 0.0
        self._guard: NumericGuard | None = None

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        plugin = trainer.precision_plugin
        if not trainer.is_global_zero or not isinstance(plugin, PrecisionPlugin) or plugin.plan is None:
            return
        self._started = time.perf_counter()
        run = self._logger.run
        run.write_json(ENVIRONMENT, describe_environment())
        run.write_text(PLAN, plugin.plan.model_dump_json(indent=2) + "\n")
        root = getattr(module, "precision_root", module)
        write_precision(self._logger.experiment, plugin.plan, describe(root), plugin.findings)
        self._guard = guard_of(trainer)
        if self._guard is not None:
            self._guard.on_incident.append(self._write_incident)

    def _write_incident(self, incident: Incident, found: Finding, path: Path | None) -> None:
        self._logger.experiment.text(tags.incident(), as_markdown(incident, path), incident.step)
        self._logger.experiment.flush()

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._summarize(trainer, "completed")

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        interrupted = isinstance(exception, KeyboardInterrupt)
        self._summarize(
            trainer, "interrupted" if interrupted else "failed", f"{type(exception).__name__}: {exception}"
        )

    def _summarize(self, trainer: pl.Trainer, status: str, message: str = "") -> None:
        if not trainer.is_global_zero or not self._started:
            return
        metrics: dict[str, dict[str, float]] = {}
        for name, value in trainer.callback_metrics.items():
            metrics.setdefault(_split(name), {})[name] = float(value)
        plugin: Any = trainer.precision_plugin
        self._logger.run.write_json(
            SUMMARY,
            {
                "status": status,
                "steps": trainer.global_step,
                "held_steps": self._guard.held if self._guard else 0,
                "incidents": len(self._guard.incidents) if self._guard else 0,
                "metrics": metrics,
                "policy": str(plugin.policy),
                "duration_s": time.perf_counter() - self._started,
                "message": message,
            },
        )


def _split(name: str) -> str:
    """The split that a metric's name speaks of: Lightning's users write `val_loss`, `valid/acc`."""
    first = name.lower().replace("/", "_").split("_")[0]
    return "validation" if first in ("val", "valid", "validation") else "test" if first == "test" else "train"
