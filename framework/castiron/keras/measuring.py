"""The health of a recipe's training: measured steps, TensorBoard's Health pages, `health.parquet`, advice."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from castiron.health.recorder import HealthRecorder
from castiron.health.writer import EventWriter
from castiron.keras.health.monitor import HealthMonitor
from castiron.keras.health.watch import Watch
from castiron.keras.module import RecipeModel
from castiron.training.backend import Job


class Measuring:
    """What of a training's steps is measured, and where it is written.

    Args:
        resumed_at: last step that the training goes on from.
    """

    def __init__(
        self, job: Job, module: RecipeModel, writer: EventWriter, *, resumed_at: int | None = None
    ) -> None:
        self._job, self._module = job, module
        self.monitor = HealthMonitor(module.core, module.policy)
        self._recorder = HealthRecorder(job.run.path, writer, resumed_at=resumed_at)

    def watch(self, step: int) -> Watch | None:
        """How the step after so many committed ones is looked at; None: not at all."""
        if self.monitor.core is not self._module.core:
            self.monitor.use(self._module.core)
        return self.monitor.watch(step)

    def committed(self, watch: Watch, given: Mapping[str, Any], step: int, held: int) -> None:
        """A measured step was applied; it is number `step`."""
        rate = self._module.schedule.rate(step - 1)
        self._recorder.add(self.monitor.committed(watch, given, step, rate, held))
        self._say(step)

    def held(self, step: int) -> None:
        """A step was not applied, after so many that were."""
        self.monitor.held(step)
        self._say(step)

    def close(self) -> None:
        """Write what is left."""
        # A full disk is no reason to hide what stopped the training.
        with contextlib.suppress(OSError):
            self._recorder.close()

    def _say(self, step: int) -> None:
        if found := self.monitor.news():
            self._recorder.say(found, step)
            self._job.reporter.findings(found)
