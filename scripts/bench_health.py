"""What measuring numerical health costs the LSTM sentiment recipe, beside an A/A control.

    python scripts/bench.py health [--steps 1992] [--json FILE]

One training, in turns of one step: measured, plain, plain again. Times are of the processor, so that what
else the machine does counts for little. `share_at_defaults` adds up what the measurements of a run of so
many steps take at `health.every`: those of everything, those that also ask what other formats would make of
the values, and those of the largest magnitudes alone, each as often as in the run, the figures that are
drawn on the way, and those and the table that are written at its end. `share_every_step` is
`health.every: 1` with scalars (largest magnitudes) alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from castiron.health.recorder import AGAIN, FIRST_FIGURES, HealthRecorder
from castiron.health.snapshot import Snapshot
from castiron.health.writer import EventWriter
from castiron.lightning.loaders import TorchLoader
from castiron.policy import PrecisionPolicy
from castiron.torch.clipping import clip_by_norm
from castiron.torch.health.monitor import HealthMonitor
from castiron.torch.optimizers import build_optimizer
from castiron.training import RunDirectory, load_config
from castiron.training.backend import Job
from castiron.training.preparation import make_batches, prepare

SETTINGS: dict[str, list[str]] = {
    "the recipe as it is": [],
    "steps of about 10 ms": [
        "data.batch_size=32",
        "model.embedding=48",
        "model.hidden=48",
        "model.text.max_vocabulary=2000",
    ],
}
_COLD = 6
"""Steps at the beginning that are not counted."""


Turn = tuple[float, float, float]
"""Seconds measured, plain, plain again."""


class Bench:
    """The recipe's training, a step at a time."""

    def __init__(self, folder: Path, overrides: list[str]) -> None:
        fixed = ["trainer.max_steps=1000", "trainer.max_epochs=null", "optimizer.schedule=constant"]
        loaded = load_config("lstm-sentiment", [*overrides, *fixed])
        job = Job(config=loaded.config, recipe=loaded.recipe, run=RunDirectory.create(folder, "bench"))
        prepared = prepare(job)
        self.recipe, self.folder = prepared.recipe, job.run.path
        self.every = loaded.config.precision.health.every
        columns = dict(self.recipe.encode(prepared.datasets["train"]))
        torch.manual_seed(0)
        self.model = self.recipe.model().train()
        self.optimizer = build_optimizer(self.model, loaded.config.optimizer)
        self.batches = list(TorchLoader(make_batches(self.recipe, columns, training=True)))

    def step(self, number: int, monitor: HealthMonitor, *, measured: bool) -> float:
        """Train on a batch. → seconds of the processor."""
        batch = self.batches[number // 3 % len(self.batches)]  # the three of a turn train on the same rows
        start = time.process_time()
        if measured:
            monitor.begin(number)
        loss = F.cross_entropy(self.model(*self.recipe.inputs(batch)), batch["label"])
        self.optimizer.zero_grad()
        monitor.see_loss(loss)
        loss.backward()
        monitor.before_update()
        clip_by_norm(self.model.parameters(), 1.0)
        self.optimizer.step()
        if measured:
            monitor.end()
        return time.process_time() - start

    def turns(
        self, steps: int, monitor: HealthMonitor, *, groups: bool
    ) -> Iterator[tuple[float, float, float]]:
        """Seconds measured, plain and plain again, one after the other; with `groups`, of the measurements
        that are not of the largest magnitudes alone."""
        for number in range(0, 3 * steps, 3):
            made = [self.step(number + i, monitor, measured=i == 0) for i in range(3)]
            last = monitor.last
            if number >= 3 * _COLD and last is not None and (last.groups or not groups):
                yield made[0], made[1], made[2]


def measure(steps: int, overrides: list[str]) -> dict[str, float]:
    """Milliseconds a step of each kind, and what follows for a run of so many steps."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), overrides)
        policy = PrecisionPolicy.preset("float32", health={"every": 1})
        extra: dict[str, float] = {}
        seen: dict[str, Snapshot] = {}
        plain: list[float] = []
        again: list[float] = []
        kinds = {"peaks": (10**6, 10**6), "everything": (2, 10**6), "what-if": (1, 1)}
        with EventWriter(bench.folder) as writer:
            for kind, (large, what_if) in kinds.items():
                recorder = HealthRecorder(bench.folder, writer)
                monitor = HealthMonitor(
                    bench.model,
                    bench.optimizer,
                    policy,
                    histograms_every=large,
                    what_if_every=what_if,
                    on_snapshot=recorder.add,
                )
                found = list(bench.turns(max(steps // 15, 4 * _COLD), monitor, groups=kind != "peaks"))
                plain += [p for _, p, _ in found]
                again += [a for _, _, a in found]
                # The mean over turns: a step's length goes with its batch, and both of a turn have the same.
                extra[kind] = statistics.median(m - p for m, p, _ in found)
                assert monitor.last is not None
                seen[kind] = monitor.last
                monitor.remove()
            recorder = HealthRecorder(bench.folder, writer)
            kinds_of_run = measurements(steps, bench.every)
            for number, kind in enumerate(kinds_of_run):
                recorder.add(seen[kind].at(1 + number * bench.every))
            start = time.process_time()
            recorder.close()
            extra["end"] = time.process_time() - start
            extra["figures"] = drawing_of(recorder)
    step = statistics.mean(plain)
    share = expected(steps, bench.every, extra) / (steps * step)
    return {
        "step_ms": 1e3 * step,
        **{f"{kind}_ms": 1e3 * seconds for kind, seconds in extra.items()},
        "every": bench.every,
        "share_at_defaults": share,
        "share_of_900_steps": expected(900, bench.every, extra) / (900 * step),
        "share_of_10000_steps": expected(10_000, bench.every, extra) / (10_000 * step),
        "share_every_step": extra["peaks"] / step,
        "a_a": statistics.mean(again) / step - 1,
    }


def drawing_of(recorder: HealthRecorder) -> float:
    """Seconds that the figures take."""
    start = time.process_time()
    recorder.draw(again=True)
    return time.process_time() - start


def measurements(steps: int, every: int) -> list[str]:
    """What is measured in a run of so many steps, one after the other."""
    monitor = HealthMonitor(torch.nn.Identity(), (), PrecisionPolicy.preset("float32"))
    looks = [monitor.looks(number) for number in range(-(-steps // every))]
    return ["what-if" if full else "everything" if large else "peaks" for large, full in looks]


def expected(steps: int, every: int, extra: dict[str, float]) -> float:
    """Seconds that health takes of a run of so many steps."""
    kinds = measurements(steps, every)
    drawn, after = 0, FIRST_FIGURES
    while after <= len(kinds):
        drawn, after = drawn + 1, after * AGAIN
    return sum(extra[kind] for kind in kinds) + drawn * extra["figures"] + extra["end"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench.py health", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--steps",
        type=int,
        default=1992,
        help="steps of the run that shares are of: the recipe's own, unless said",
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", help="config keys, as `model.hidden=256`")
    given = parser.parse_args(argv)
    results: dict[str, Any] = {"machine": platform.processor(), "torch": torch.__version__}
    for name, overrides in SETTINGS.items():
        results[name] = measure(given.steps, [*overrides, *given.overrides])
        print(name)
        for key, value in results[name].items():
            print(f"  {key:22} {value:10.4f}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
