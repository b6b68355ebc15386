"""A Lightning logger that writes a run directory: TensorBoard events and `metrics.jsonl`."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from castiron.health import tags
from castiron.health.writer import EventWriter
from castiron.training.run_directory import RunDirectory


class RunLogger(Logger):
    """Logs a LightningModule's metrics into `<root>/runs/<name>/<time>`, in the form of every castiron run.

    The default of `castiron.lightning.Trainer`. (Lightning's own default imports TensorFlow wherever that is
    installed: two seconds and 270 MB.)

    Args:
        root: the folder that holds `runs`.
        name: what trains, in kebab-case.
        version: name of the run; the time by default.
    """

    def __init__(self, root: str | Path, name: str = "lightning", version: str | None = None) -> None:
        super().__init__()
        self._root = Path(root)
        self._name = name
        self._version = version
        self._run: RunDirectory | None = None
        self._writer: EventWriter | None = None
        self._last: dict[str, float] = {}

    @property
    def run(self) -> RunDirectory:
        """The run directory; made when it is first asked for."""
        if self._run is None:
            self._run = RunDirectory.create(self._root / "runs", self._name, self._version)
            self._version = self._run.path.name
        return self._run

    @property
    @rank_zero_experiment
    def experiment(self) -> EventWriter:
        """The event writer of TensorBoard."""
        if self._writer is None:
            self._writer = EventWriter(self.run.path)
        return self._writer

    @property
    def name(self) -> str:
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        if self._run is None:
            self._name = name

    @property
    def version(self) -> str:
        return self.run.path.name

    @property
    def save_dir(self) -> str:
        return str(self._root / "runs")

    @property
    def log_dir(self) -> str:
        return str(self.run.path)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        at = 0 if step is None else step
        self.experiment.scalars({tags.logged(n): v for n, v in values.items() if n != "epoch"}, at)
        self.run.log_metrics({"step": at, **values})

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        values = vars(params) if isinstance(params, Namespace) else dict(params)
        if values:
            self.experiment.hparams(values)

    @rank_zero_only
    def save(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the files; what is logged later goes into a new event file of the same run."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._run is not None:
            self._run.close()


def run_name(module: object) -> str:
    """A class name in kebab-case: `LitClassifier` → `lit-classifier`."""
    name = type(module).__name__
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()
