"""Trainings in several TensorFlow processes, for `test_several_workers.py` (see `several_ranks.py`)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import several_ranks
from several_ranks import exit_code, kill_test

BATCH = 32
"""Rows of a step, over all processes."""
BAD_ROW = 188
SETTINGS = (
    "backend=tensorflow",
    "model.embedding=8",
    "model.hidden=8",
    "model.layers=1",
    "model.bidirectional=false",
    "model.text.max_vocabulary=200",
    "health.every=1000",
    "trainer.log_every=1",
    "trainer.threads=1",
    "trainer.max_epochs=1",
    "trainer.limit_train=6",
    "trainer.limit_test=1",
    "trainer.checkpoint_every=2",
    "trainer.timeout=200",
    "audit.level=off",
)
PLAIN = ("model.dropout=0.0", "model.embedding_dropout=0.0", "model.word_dropout=0.0")
"""No random numbers: they are each process's own."""


def command(folder: Path, name: str, world: int, *more: str) -> list[str]:
    several = () if world == 1 else (f"trainer.devices={world}", "trainer.strategy=multi-worker")
    files = [f"data.{split}={folder / split}.csv" for split in kill_test.ROWS]
    size = f"data.batch_size={BATCH // world}"
    where = ["--name", name, "--runs", str(folder)]
    return ["train", "lstm-sentiment", *SETTINGS, *several, size, *more, *files, *where]


def bad_loss(rank: int) -> None:
    """The loss of a batch with a certain row is not finite."""
    import tensorflow as tf

    from castiron_recipes import LSTMSentiment

    whole = LSTMSentiment.loss

    def loss(self: Any, outputs: Any, batch: Any) -> Any:
        bad = tf.reduce_any(batch["row"] == BAD_ROW)
        return whole(self, outputs, batch) + tf.math.log(tf.where(bad, -1.0, 1.0))

    LSTMSentiment.loss = loss  # type: ignore[method-assign]


def writes_rows(folder: Path) -> Callable[[int], None]:
    """Each rank writes which rows it trained on, a list for each batch of its own."""

    def prepare(rank: int) -> None:
        from castiron.keras.module import RecipeModel

        whole, seen = RecipeModel.step, []

        def step(self: Any, batches: Any, *more: Any) -> Any:
            seen.append([int(row) for batch in batches for row in batch["row"].numpy()])
            (folder / f"rows-{rank}.json").write_text(json.dumps(seen))
            return whole(self, batches, *more)

        RecipeModel.step = step  # type: ignore[method-assign,assignment]

    return prepare


def slow_steps(rank: int) -> None:
    from castiron.keras.loaders import TensorLoader

    several_ranks.slowed(TensorLoader)


def dies_while_others_wait(rank: int) -> None:
    """Rank 1 is killed when rank 0 waits for what it has to say, before the first step."""
    from castiron.keras import peers

    peers._HEARTBEAT_S = 4.0
    if rank == 1:
        whole = peers.ClusterPeers.gather

        def gather(self: Any, value: Any) -> list[Any]:
            if self._number == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(self, value)

        peers.ClusterPeers.gather = gather  # type: ignore[method-assign]


def run(folder: Path, name: str) -> list[int]:
    """Run a scenario. → exit codes of its ranks."""
    home = folder / name
    home.mkdir()
    prepare: Callable[[int], None] | None = None
    kind, _, rest = name.partition("-")
    metrics = folder / "lstm-sentiment" / name / "metrics.jsonl"
    if kind == "plain":  # plain-2: of so many processes
        commands = [command(folder, name, int(rest), *PLAIN)] * int(rest)
        prepare = writes_rows(home)
    elif kind == "nan":
        commands, prepare = [command(folder, name, 2, *PLAIN, "guard.response=hold")] * 2, bad_loss
    elif kind == "differ":
        commands = [command(folder, name, 2, f"optimizer.lr={lr}") for lr in (0.001, 0.002)]
    elif kind == "waiting":
        commands, prepare = [command(folder, name, 2)] * 2, dies_while_others_wait
    elif kind == "whole":
        commands = [[*command(folder, name, 2), "trainer.max_epochs=2"]] * 2
    elif kind in ("killed", "stopped"):
        commands, prepare = [[*command(folder, name, 2), "trainer.max_epochs=2"]] * 2, slow_steps
    elif kind == "resumed":  # resumed-killed: that run goes on
        shutil.copytree(folder / "lstm-sentiment" / rest, folder / "lstm-sentiment" / name)
        commands = [["train", "--resume", str(folder / "lstm-sentiment" / name), "--runs", str(folder)]] * 2
    else:
        raise SystemExit(f"no scenario {name}")
    processes = kill_test.fork_ranks(commands, home, prepare, backend="tensorflow")
    if kind in ("killed", "stopped"):
        number = signal.SIGKILL if kind == "killed" else signal.SIGTERM
        several_ranks.signalled(processes[1], number, metrics, within=120)
    return [exit_code(process) for process in processes]


if __name__ == "__main__":
    several_ranks.main(run)
