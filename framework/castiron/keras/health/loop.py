"""The health of one loop: steps that are measured, what is said of them, and where it is kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from castiron.diagnostics import Finding
from castiron.health.recorder import HealthRecorder
from castiron.health.writer import EventWriter
from castiron.keras.health.monitor import HealthMonitor
from castiron.keras.health.watch import Watch
from castiron.keras.step import StepCore
from castiron.policy import PrecisionPolicy

Tell = Callable[[Sequence[Finding]], Any]


class LoopHealth:
    """What of a loop's steps is measured (`health.every`), and what is said of it.

    Args:
        tell: told what there is to say.
    """

    def __init__(self, core: StepCore, policy: PrecisionPolicy, tell: Tell) -> None:
        self.monitor = HealthMonitor(core, policy)
        self.recorder: HealthRecorder | None = None
        """Where it is kept; None: nowhere."""
        self._tell = tell

    def watch(self, core: StepCore, step: int) -> Watch | None:
        """How the step after so many committed ones is looked at; None: not at all."""
        if self.monitor.core is not core:
            self.monitor.use(core)
        return self.monitor.watch(step)

    def committed(self, watch: Watch, given: Mapping[str, Any], step: int, rate: float, held: int) -> None:
        """A measured step was applied; it is number `step`."""
        snapshot = self.monitor.committed(watch, given, step, rate, held)
        if self.recorder is not None:
            self.recorder.add(snapshot)
        self._say(step)

    def held(self, step: int) -> None:
        """A step was not applied, after so many that were."""
        self.monitor.held(step)
        self._say(step)

    @contextlib.contextmanager
    def kept_in(self, folder: str | Path, step: int) -> Iterator[None]:
        """Within it what is measured is kept in a folder: `health.parquet`, `health.jsonl`, and the Health
        pages for TensorBoard.

        Args:
            step: steps applied so far; what the folder says of earlier ones stays.
        """
        resumed_at = step or None

        def tell(problem: Finding) -> None:
            self._tell([problem])

        with EventWriter(folder, resumed_at=resumed_at, on_problem=tell) as writer:
            self.recorder = HealthRecorder(folder, writer, resumed_at=resumed_at, on_problem=tell)
            try:
                yield
            finally:
                self.close()

    def close(self) -> None:
        """Write what is left."""
        recorder, self.recorder = self.recorder, None
        if recorder is not None:
            recorder.close()

    def _say(self, step: int) -> None:
        if found := self.monitor.news():
            if self.recorder is not None:
                self.recorder.say(found, step)
            self._tell(found)


def learning_rate(core: StepCore) -> float:
    """That of the step to come."""
    return float(keras.ops.convert_to_tensor(core.updates.optimizer.learning_rate).numpy())
