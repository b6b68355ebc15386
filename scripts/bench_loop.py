"""Throughput of the LSTM sentiment recipe, against loops that a user would write by hand.

    python scripts/bench.py loop [--rounds 7] [--json FILE]

Everything runs in one process, in turns (A B A B …), and what counts is the ratio of medians: a shared
machine slows all of it alike. Health is measured as in a run: the first step, and every hundredth; figures
at the end are not timed. `A/A` is the same loop against itself: differences of that size mean nothing. The
model of a setting is the smallest whose steps by hand take that long on this machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from castiron.health.writer import EventWriter
from castiron.lightning.checkpoints import RunCheckpoints
from castiron.lightning.loaders import TorchLoader
from castiron.lightning.module import RecipeModule
from castiron.lightning.quiet import quiet_lightning
from castiron.lightning.recorder import Recorder
from castiron.lightning.run import make_trainer
from castiron.torch.optimizers import build_optimizer
from castiron.training import RunDirectory, load_config
from castiron.training.backend import Job, Silent
from castiron.training.preparation import make_batches, prepare
from castiron_recipes.lstm_sentiment.model import SentimentLSTM

SIZES = (
    (32, 48),
    (32, 96),
    (64, 96),
    (64, 128),
    (64, 192),
    (128, 192),
    (128, 256),
    (160, 256),
    (192, 256),
    (256, 256),
    (256, 384),
    (256, 512),
)
"""Rows of a batch and width of the model, from small to large."""

Run = Callable[[], float]
"""Trains some steps and says how many seconds they took, set-up left out."""


class Setting:
    """The recipe at one size, on its embedded data."""

    def __init__(self, folder: Path, steps: int, overrides: list[str]) -> None:
        # The schedule is off on both sides; everything else is as the recipe has it.
        fixed = [f"trainer.max_steps={steps}", "trainer.max_epochs=null", "optimizer.schedule=constant"]
        loaded = load_config("lstm-sentiment", [*overrides, *fixed])
        self.config, self.steps = loaded.config, steps
        run = RunDirectory.create(folder, "bench")
        self.job = Job(config=loaded.config, recipe=loaded.recipe, run=run)
        prepared = prepare(self.job)
        self.recipe = prepared.recipe
        self.columns = dict(self.recipe.encode(prepared.datasets["train"]))

    def model(self) -> SentimentLSTM:
        torch.manual_seed(0)
        model: SentimentLSTM = self.recipe.model()
        return model

    def castiron(self) -> float:
        """Lightning under the policy, with castiron's monitoring, logging and checkpoints as in a run."""
        module = RecipeModule(self.recipe, self.config.precision)
        module.model = self.model()
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder, EventWriter(folder) as writer, quiet_lightning():
            recorder = Recorder(self.job.run, writer, Silent(), every=self.config.trainer.log_every)
            checkpoints = RunCheckpoints(Path(folder), monitor="loss", mode="min")
            trainer = make_trainer(self.job, [recorder, checkpoints, clock])
            batches = make_batches(self.recipe, self.columns, training=True)
            trainer.fit(module, TorchLoader(batches))
        return clock.seconds

    def by_hand(self) -> float:
        """The same batches, model and optimizer in a plain loop that looks at the loss as rarely."""
        model = self.model().train()
        optimizer = build_optimizer(model, self.config.optimizer)
        clip = self.config.trainer.clip_norm
        batches = self._endless()
        start = time.perf_counter()
        for step in range(self.steps):
            batch = next(batches)
            loss = F.cross_entropy(model(batch["text"], batch["text_length"]), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            if step % self.config.trainer.log_every == 0:
                loss.item()
        return time.perf_counter() - start

    def ordinary(self) -> float:
        """What most people write: a DataLoader that pads as rows come, and Adam with its defaults."""
        model = self.model().train()
        optimizer = torch.optim.Adam(model.parameters(), lr=self.config.optimizer.lr)
        clip = self.config.trainer.clip_norm
        text, labels = self.columns["text"], self.columns["label"]
        rows = [(torch.from_numpy(np.array(text[i])), int(labels[i])) for i in range(len(labels))]

        def collate(items: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, ...]:
            ids = [row for row, _ in items]
            length = torch.tensor([len(row) for row in ids])
            return pad_sequence(ids, batch_first=True), length, torch.tensor([label for _, label in items])

        loader = torch.utils.data.DataLoader(
            rows,  # type: ignore[arg-type]
            batch_size=self.config.data.batch_size,
            shuffle=True,
            collate_fn=collate,
        )
        step, start = 0, time.perf_counter()
        while True:
            for ids, length, label in loader:
                loss = F.cross_entropy(model(ids, length), label)
                optimizer.zero_grad()
                loss.backward()
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                loss.item()
                step += 1
                if step == self.steps:
                    return time.perf_counter() - start

    def _endless(self) -> Iterator[dict[str, torch.Tensor]]:
        loader = TorchLoader(make_batches(self.recipe, self.columns, training=True))
        while True:
            yield from loader


class Clock(pl.Callback):
    """Seconds from the first batch to the last."""

    seconds = 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.seconds = time.perf_counter() - self._start


def in_turns(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run in each round, in an order that turns; a first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for round_number in range(rounds + 1):
        order = names if round_number % 2 else names[::-1]
        for name in order:
            seconds = runs[name]()
            if round_number:
                times[name].append(seconds)
    return times


def compare(setting: Setting, rounds: int) -> dict[str, Any]:
    """Throughput of castiron relative to each loop (above 1: castiron is faster), and milliseconds a step."""
    times = in_turns(
        {
            "castiron": setting.castiron,
            "by hand": setting.by_hand,
            "by hand again": setting.by_hand,
            "ordinary": setting.ordinary,
        },
        rounds,
    )
    middle = {name: statistics.median(t) for name, t in times.items()}
    return {
        "step_ms": {name: round(1e3 * t / setting.steps, 2) for name, t in middle.items()},
        "A/A": round(middle["by hand"] / middle["by hand again"], 3),
        "against the same loop by hand": round(middle["by hand"] / middle["castiron"], 3),
        "against an ordinary loop": round(middle["ordinary"] / middle["castiron"], 3),
    }


def of_about(milliseconds: float, steps: int, folder: Path, overrides: list[str]) -> Setting:
    """The smallest setting whose steps by hand take so long."""
    for rows, size in SIZES:
        sizes = [f"data.batch_size={rows}", f"model.embedding={size}", f"model.hidden={size}"]
        place = folder / f"{steps}-{rows}-{size}"
        few = Setting(place / "few", 20, [*sizes, *overrides])
        few.by_hand()
        if few.by_hand() / few.steps * 1e3 >= milliseconds:
            break
    return Setting(place, steps, [*sizes, *overrides])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench.py loop", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--policy", default="float32")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(argv)
    policy = [f"precision={given.policy}"]
    results: dict[str, Any] = {"machine": platform.processor(), "torch": torch.__version__}
    results["threads"] = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "steps of about 10 ms": of_about(10, 400, Path(folder), policy),
            "the recipe as it is": Setting(Path(folder), 400, policy),
            "steps of about 100 ms": of_about(100, 40, Path(folder), policy),
        }
        for name, setting in settings.items():
            config = setting.config
            sizes = {"rows": config.data.batch_size, "hidden": config.model.hidden}
            results[name] = sizes | compare(setting, given.rounds)
            print(name, json.dumps(results[name]), flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
