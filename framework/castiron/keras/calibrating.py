"""Ranges of a recipe's model without training, and short trainings that leave nothing behind."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from castiron.diagnostics import Finding
from castiron.health.snapshot import Snapshot
from castiron.health.statistics import WHAT_IF
from castiron.keras import checkpoints
from castiron.keras.health.monitor import HealthMonitor
from castiron.keras.health.watch import Watch
from castiron.keras.loaders import TensorLoader, signature
from castiron.keras.module import RecipeModel
from castiron.keras.modules import describe
from castiron.keras.session import session
from castiron.training.backend import Job
from castiron.training.calibration import Measured, Trial
from castiron.training.preparation import prepare
from castiron.training.schedules import total_steps

_COLD = 5
"""Steps of a trial whose time does not count."""


def measure(job: Job, batches: int) -> Measured:
    """Forward and backward passes over training batches, with everything measured at each."""
    with session(job.config, job.reporter):
        prepared = prepare(job, ("train",))
        module = RecipeModel(prepared.recipe)
        module.prepare_training(1)
        if job.checkpoint is not None:
            checkpoints.load(job.checkpoint, module, training=False)
        loader = TensorLoader(prepared.batches["train"], module.policy, module.schema)
        snapshots, found = _passes(module, loader, batches)
        layers = tuple(describe(module.model))
    return Measured(snapshots=snapshots, layers=layers, findings=(*module.findings, *found))


def _passes(
    module: RecipeModel, loader: TensorLoader, batches: int
) -> tuple[tuple[Snapshot, ...], list[Finding]]:
    core = module.core
    watch = Watch(core, formats=WHAT_IF, learns=False)
    monitor = HealthMonitor(core, module.policy)

    def run(batch: Any) -> Any:
        with watch.tracing():
            core.look(module.forward, [batch])
            return watch.outputs()

    compiled: Any = None
    seen: list[Snapshot] = []
    found: list[Finding] = []
    for number, batch in enumerate(itertools.islice(_epochs(loader), batches), 1):
        if compiled is None:
            compiled = tf.function(run, input_signature=[signature(batch)], autograph=False)
        seen.append(monitor.committed(watch, compiled(batch), number, 0.0, 0))
        found += monitor.news()
    return tuple(seen), found


def trial(job: Job) -> Trial:
    """Train as the job says, but that a held step is passed over; where the response is to raise, it ends the
    trial with a loss that is not finite."""
    config = job.config.trainer
    with session(job.config, job.reporter):
        prepared = prepare(job, ("train",))
        module = RecipeModel(prepared.recipe)
        loader = TensorLoader(prepared.batches["train"], module.policy, module.schema, config.limit_train)
        steps = total_steps(config, len(loader))
        module.prepare_training(steps)
        losses: list[float] = []
        times: list[float] = []
        held = committed = 0
        for batches in itertools.islice(_groups(loader, config.accumulate), 2 * steps):
            if committed == steps:
                break
            module.schedule.set(committed)
            started = time.perf_counter()
            found = module.step(batches)
            loss = float(found["loss"])  # waits for the device
            times.append(time.perf_counter() - started)
            if bool(found["committed"]):
                committed += 1
                losses.append(loss)
                continue
            verdict = module.core.verdict(found["flagged"], len(batches))
            if module.core.is_expected(verdict, found["calibrating"]):
                continue
            held += 1
            if module.policy.guard.response == "raise":
                losses.append(float("nan"))
                break
    times = times[_COLD:] or times or [float("nan")]
    return Trial(losses=tuple(losses), step_ms=1e3 * statistics.median(times), held=held)


def _epochs(loader: TensorLoader) -> Iterator[dict[str, Any]]:
    while True:
        yield from loader


def _groups(loader: TensorLoader, size: int) -> Iterator[list[dict[str, Any]]]:
    """The micro-batches of one step after another; an epoch's last may have fewer."""
    while True:
        group: list[dict[str, Any]] = []
        for batch in loader:
            group.append(batch)
            if len(group) == size:
                yield group
                group = []
        if group:
            yield group
