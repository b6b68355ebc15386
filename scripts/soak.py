"""A long training into which faults are put: batches with NaN, scales that collapse, kills, full disks.

    python scripts/soak.py --steps 100000

A small recipe trains in processes of its own, which are killed (SIGKILL) or meet a full disk in the first
half, and are resumed each time. When it has ended the books must balance: each batch with NaN is a held step,
each batch whose gradients overflow is an overflow of the loss scale, all others are committed steps; every
parameter is finite; and in the undisturbed second half memory and open files stay as they are.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import kill_test

RECIPE = '''
"""A recipe with faults in its data: 1, inputs that are NaN; 2, gradients that overflow, the loss finite."""

import torch
from torch import nn

from castiron.data import Field, Schema
from castiron.training import Recipe


class Soak(Recipe):
    name = "soak"

    class Config(Recipe.Config):
        hidden: int = 8
        """Size of the hidden layer."""

    def schema(self):
        return Schema.of(
            Field(name="x", role="feature", dtype="float32", shape=(4,)),
            Field(name="fault", role="id", dtype="int64"),
            Field(name="y", role="target", dtype="float32"),
        )

    def learn(self, train):
        pass

    def save(self, folder):
        pass

    def load(self, folder):
        pass

    def model(self):
        return nn.Sequential(nn.Linear(4, self.config.hidden), nn.Tanh(), nn.Linear(self.config.hidden, 1))

    def inputs(self, batch):
        bad = (batch["fault"] == 1).unsqueeze(1)
        return (torch.where(bad, float("nan"), batch["x"]),)

    def loss(self, outputs, batch):
        outputs = outputs.squeeze(1)
        loss = (outputs - batch["y"]).square().mean()
        nothing = (outputs - outputs.detach())[batch["fault"] == 2].sum()
        return loss + nothing * 1e30 * 1e30
'''
ROWS, BATCH = 2000, 4
NAN_ROWS, OVERFLOW_ROWS = 2, 2
"""Rows of each kind of fault, in every epoch of 500 batches."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000, help="batches; whole epochs of 500")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--full", type=int, default=5, help="times that the disk is full")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where runs are kept; a temporary folder by default")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="castiron-soak-"))
    try:
        account = soak(folder, arguments.steps, arguments.kills, arguments.full, arguments.seed)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(account, indent=2) if arguments.json else as_text(account))
    return 0 if account["balances"] else 1


def soak(folder: Path, steps: int, kills: int, full: int, seed: int) -> dict[str, Any]:
    """Train through it all. → the account."""
    from castiron.diagnostics import RunError

    epochs = max(steps // (ROWS // BATCH), 1)
    write(folder, seed)
    arguments = [
        str(folder / "soak.yaml"), "--name", "soak", "--runs", str(folder / "runs"), "--quiet",
        f"trainer.max_epochs={epochs}", f"trainer.checkpoint_every={max(epochs * 500 // 100, 25)}",
    ]  # fmt: skip
    run = folder / "runs" / "soak" / "soak"
    draw = random.Random(seed)
    disturbances = ["kill"] * kills + ["full"] * full
    draw.shuffle(disturbances)
    half = epochs * (ROWS // BATCH) // 2
    happened = {"kill": 0, "full": 0}
    samples: list[tuple[int, int]] = []
    started = time.monotonic()
    while True:
        again = ["--resume", str(run), "--runs", str(folder / "runs"), "--quiet"]
        next_ = disturbances[-1] if disturbances and step_of(run) < half else None
        process = start(again if (run / "config.yaml").exists() else arguments, next_ == "full", draw)
        code = watch(process, run, next_ == "kill", draw, half / max(kills + full, 1), samples)
        if code == -signal.SIGKILL:
            happened["kill"] += 1
            disturbances.pop()
        elif next_ == "full" and code == RunError.exit_code:
            happened["full"] += 1
            disturbances.pop()
        else:
            break
    return balance(run, folder, epochs, code, happened, samples, time.monotonic() - started)


def write(folder: Path, seed: int) -> None:
    """The recipe, its config and its data."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "soak_recipe.py").write_text(RECIPE, encoding="utf-8")
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(ROWS, 4)).astype(np.float32)
    fault = np.zeros(ROWS, np.int64)
    fault[:NAN_ROWS] = 1
    fault[NAN_ROWS : NAN_ROWS + OVERFLOW_ROWS] = 2
    y = x.sum(1).astype(np.float32)
    np.savez(folder / "train.npz", x=x, fault=fault, y=y)
    (folder / "soak.yaml").write_text(
        f"recipe: {folder / 'soak_recipe.py'}:Soak\n"
        "precision: {preset: fp16-mixed, scaling: {kind: dynamic, initial: 1024, interval: 20, max: 4096}}\n"
        f"data: {{train: {folder / 'train.npz'}, batch_size: {BATCH}}}\n"
        "optimizer: {name: adamw, lr: 1e-3}\n"
        "trainer: {threads: 1, log_every: 100}\n"
        "guard: {response: hold, budget: {holds: 1000000, window: 1000000}}\n"
        "audit: {level: off}\n",
        encoding="utf-8",
    )


def start(arguments: list[str], full: bool, draw: random.Random) -> int:
    """A process that trains; its disk is full at one of its next checkpoints where that is said."""
    at = draw.randint(1, 6)

    def fill(rank: int) -> None:
        from castiron.lightning import checkpoints

        real, calls = checkpoints._save, [0]

        def save(state: Any, file: Any) -> None:
            calls[0] += 1
            if calls[0] == at:
                file.write(b"half of it")
                raise OSError(errno.ENOSPC, "No space left on device")
            real(state, file)

        checkpoints._save = save

    (process,) = kill_test.fork_ranks([["train", *arguments]], prepare=fill if full else None)
    return process


def watch(
    process: int, run: Path, kill: bool, draw: random.Random, steps: float, samples: list[tuple[int, int]]
) -> int:
    """Wait for a process, kill it after about so many steps where that is said. → its exit code.

    Adds its memory (bytes) and open files, ten times a second, to `samples`, which begin anew with it.
    """
    samples.clear()
    last = step_of(run) + draw.uniform(0.2, 1.5) * steps
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if kill and (step_of(run) > last or draw.random() < 0.002):
            os.kill(process, signal.SIGKILL)
        try:
            memory = int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
            samples.append((memory, len(os.listdir(f"/proc/{process}/fd"))))
        except (OSError, IndexError):
            pass
        time.sleep(0.1)


def step_of(run: Path) -> int:
    """The step that was logged last."""
    try:
        with open(run / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, 2) - 400))
            lines = file.read().split(b"\n")
        return int(json.loads(lines[-2])["step"])
    except (OSError, ValueError, KeyError, IndexError):
        return 0


def balance(
    run: Path, folder: Path, epochs: int, code: int, happened: dict[str, int],
    samples: list[tuple[int, int]], seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """What was put in, and what came of it."""
    import torch

    from castiron.data import load
    from castiron.training import load_config
    from castiron.training.manifest import read_manifest
    from castiron.training.preparation import make_batches

    loaded = load_config(run / "config.yaml")
    recipe = loaded.recipe(loaded.config)
    batches = make_batches(
        recipe, recipe.encode(load([folder / "train.npz"], recipe.schema())), training=True
    )
    nan = overflow = total = 0
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for batch in batches:
            faults = set(batch["fault"].tolist())
            total += 1
            nan += 1 in faults
            overflow += 2 in faults and 1 not in faults
    summary = json.loads((run / "summary.json").read_text())
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    manifest = read_manifest(run / "checkpoints" / "last.ckpt")
    assert manifest is not None
    incidents = list((run / "incidents").glob("step-*"))  # a step that a kill has undone is held again
    finite = all(bool(v.isfinite().all()) for v in state["state_dict"].values())
    counted = (manifest.scaler or {}).get("overflows")
    third = max(len(samples) // 3, 1)
    settled = samples[third:]
    memory = [m for m, _ in settled]
    files = [f for _, f in settled]
    middle = len(memory) // 2
    growth = statistics.median(memory[middle:]) - statistics.median(memory[:middle]) if middle else 0
    account: dict[str, Any] = {
        "exit code": code,
        "batches": total,
        "with NaN": nan,
        "held": summary["held_steps"],
        "incidents": len(incidents),
        "with overflow": overflow,
        "overflows counted by the scaler": counted,
        "committed": summary["steps"],
        "parameters finite": finite,
        "killed": happened["kill"],
        "disk full": happened["full"],
        "memory growth MiB, last part": round(growth / 2**20, 1),
        "open files": [min(files, default=0), max(files, default=0)],
        "metrics.jsonl bytes": (run / "metrics.jsonl").stat().st_size,
        "events bytes": sum(p.stat().st_size for p in run.glob("events.*")),
        "incidents bytes": sum(p.stat().st_size for p in (run / "incidents").rglob("*") if p.is_file()),
        "left half written": [p.name for p in run.rglob(".*.part")],
        "seconds": round(seconds, 1),
    }
    account["balances"] = (
        code == 0
        and summary["held_steps"] == nan
        and counted == overflow
        and summary["steps"] == total - nan - overflow
        and len(incidents) >= nan
        and finite
        and growth < 64 << 20
        and not account["left half written"]
    )
    return account


def as_text(account: dict[str, Any]) -> str:
    width = max(map(len, account))
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in account.items())


if __name__ == "__main__":
    raise SystemExit(main())
