"""What measuring numerical health costs the LSTM sentiment recipe.

    python scripts/bench_health.py [--steps 240] [--json FILE]

One training, in turns of one step: measured, plain, plain again (the A/A control), each as long as the sum
of its steps' times on this thread; the share that health takes at its defaults is what a measured step
takes longer, over `health.every` plain steps. Every twentieth measurement also asks what other formats
would make of the values, as in a run. Times are of the processor, so that what else the machine does counts
for little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from castiron.health.recorder import HealthRecorder
from castiron.health.writer import EventWriter
from castiron.lightning.loaders import TorchLoader
from castiron.policy import PrecisionPolicy
from castiron.torch.clipping import clip_by_norm
from castiron.torch.health.monitor import HealthMonitor
from castiron.torch.optimizers import build_optimizer
from castiron.training import RunDirectory, load_config
from castiron.training.backend import Job
from castiron.training.preparation import make_batches, prepare


def measure(steps: int, overrides: list[str]) -> dict[str, float]:
    """Milliseconds a step: measured and written, plain, plain again."""
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {"measured": [], "plain": [], "plain again": []}
    with tempfile.TemporaryDirectory() as folder:
        fixed = ["trainer.max_steps=1000", "trainer.max_epochs=null", "optimizer.schedule=constant"]
        loaded = load_config("lstm-sentiment", [*overrides, *fixed])
        job = Job(config=loaded.config, recipe=loaded.recipe, run=RunDirectory.create(Path(folder), "bench"))
        prepared = prepare(job)
        recipe = prepared.recipe
        columns = dict(recipe.encode(prepared.datasets["train"]))
        torch.manual_seed(0)
        model = recipe.model().train()
        optimizer = build_optimizer(model, loaded.config.optimizer)
        every = loaded.config.precision.health.every
        policy = PrecisionPolicy.preset("float32", health={"every": 1})
        batches = list(TorchLoader(make_batches(recipe, columns, training=True)))
        with EventWriter(job.run.path) as writer, HealthRecorder(job.run.path, writer) as recorder:
            monitor = HealthMonitor(model, optimizer, policy, on_snapshot=recorder.add)
            for number in range(steps):
                batch = batches[number // 3 % len(batches)]  # the three of a turn train on the same rows
                turn = ("measured", "plain", "plain again")[number % 3]
                start = time.process_time()
                if turn == "measured":
                    monitor.begin(number)
                loss = F.cross_entropy(model(*recipe.inputs(batch)), batch["label"])
                optimizer.zero_grad()
                monitor.see_loss(loss)
                loss.backward()
                monitor.before_update()
                clip_by_norm(model.parameters(), 1.0)
                optimizer.step()
                if turn == "measured":
                    monitor.end()
                if number > 6:
                    times[turn].append(time.process_time() - start)
    # The mean of what is measured, as what is rare (figures, what-if) is dear; medians of what is not.
    mean = statistics.mean(times["measured"])
    median = statistics.median(times["measured"])
    plain, again = statistics.median(times["plain"]), statistics.median(times["plain again"])
    return {
        "measured_ms": 1e3 * mean,
        "measured_median_ms": 1e3 * median,
        "plain_ms": 1e3 * plain,
        "plain_again_ms": 1e3 * again,
        "every": every,
        "share_at_defaults": (mean - statistics.mean(times["plain"])) / (every * plain),
        "share_a_a": (again - plain) / (every * plain),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", help="config keys, as `model.hidden=256`")
    arguments = parser.parse_args()
    found = measure(arguments.steps, arguments.overrides)
    for name, value in found.items():
        print(f"{name:22} {value:10.4f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
