"""The health of a recipe's training: measured steps, TensorBoard's Health pages, `health.parquet`, advice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from castiron.health.recorder import HealthRecorder
from castiron.health.writer import EventWriter
from castiron.keras.health.loop import LoopHealth
from castiron.keras.health.watch import Watch
from castiron.keras.module import RecipeModel
from castiron.training.backend import Job


class Measuring:
    """What of a training's steps is measured, and where it is written.

    Args:
        folder: where it is kept.
        resumed_at: last step that the training goes on from.
    """

    def __init__(
        self,
        job: Job,
        module: RecipeModel,
        writer: EventWriter,
        folder: Path,
        *,
        resumed_at: int | None = None,
    ) -> None:
        self._module = module
        self._loop = LoopHealth(module.core, module.policy, job.reporter.findings)
        self._loop.recorder = HealthRecorder(
            folder, writer, resumed_at=resumed_at, on_problem=lambda f: job.reporter.findings([f])
        )
        self.held, self.close = self._loop.held, self._loop.close

    def watch(self, step: int) -> Watch | None:
        """How the step after so many committed ones is looked at; None: not at all."""
        return self._loop.watch(self._module.core, step)

    def committed(self, watch: Watch, given: Mapping[str, Any], step: int, held: int) -> None:
        """A measured step was applied; it is number `step`."""
        self._loop.committed(watch, given, step, self._module.schedule.rate(step - 1), held)
