"""Trainings in several processes, for `test_several_processes.py` (see `several_ranks.py`)."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import several_ranks
from several_ranks import exit_code, kill_test

from ranks import bad_loss, command, writes_rows


def other_versions(rank: int) -> None:
    from castiron.training import rank_facts

    own = rank_facts.versions
    if rank == 1:
        rank_facts.versions = lambda: {**own(), "numpy": "1.0"}  # type: ignore[attr-defined]


def stalls(rank: int) -> None:
    """Rank 1 stops for good before its third batch, and is not dead."""
    from castiron.lightning.loaders import TorchLoader

    whole = TorchLoader.__iter__

    def batches(self: TorchLoader) -> Iterator[Any]:
        for number, batch in enumerate(whole(self)):
            if rank == 1 and number == 2:
                os.kill(os.getpid(), signal.SIGSTOP)
            yield batch

    TorchLoader.__iter__ = batches  # type: ignore[method-assign]


def slow_steps(rank: int) -> None:
    from castiron.lightning.loaders import TorchLoader

    several_ranks.slowed(TorchLoader)


def run(folder: Path, name: str) -> list[int]:
    """Run a scenario. → exit codes of its ranks."""
    home = folder / name
    home.mkdir()
    prepare: Callable[[int], None] | None = None
    kind, _, rest = name.partition("-")
    metrics = folder / "lstm-sentiment" / name / "metrics.jsonl"
    if kind in ("one", "ddp", "fsdp"):  # ddp-4-bf16
        world, precision = rest.split("-")
        policy = {"f32": "float32", "bf16": "bf16-mixed"}[precision]
        strategy = "auto" if kind == "one" else kind
        commands = [
            command(folder, name, int(world), f"trainer.strategy={strategy}", f"precision={policy}")
        ] * int(world)
        prepare = writes_rows(home)
    elif kind == "nan":  # nan-ddp-4-hold
        strategy, world, response = rest.split("-")
        more = (f"trainer.strategy={strategy}", f"guard.response={response}")
        commands = [command(folder, name, int(world), *more)] * int(world)
        prepare = bad_loss
    elif name == "differ-config":
        commands = [command(folder, name, 2, f"optimizer.lr={lr}") for lr in (0.001, 0.002)]
    elif name == "differ-data":
        (home / "data").mkdir()
        for split in kill_test.ROWS:
            text = (folder / f"{split}.csv").read_text()
            (home / "data" / f"{split}.csv").write_text(
                text.replace("dull", "fun") if split == "train" else text
            )
        commands = [command(folder, name, 2, data=data) for data in (None, home / "data")]
    elif name == "differ-versions":
        commands, prepare = [command(folder, name, 2)] * 2, other_versions
    elif name == "world":
        commands = [[*command(folder, name, 2), "trainer.devices=3"]] * 2
    elif kind == "stall":
        commands, prepare = [[*command(folder, name, 2), "trainer.timeout=3"]] * 2, stalls
    elif kind in ("killed", "stopped"):
        commands = [[*command(folder, name, 2), "trainer.max_epochs=3"]] * 2
        prepare = slow_steps
    elif kind == "whole":
        commands = [[*command(folder, name, 2), "trainer.max_epochs=3"]] * 2
    elif kind == "resumed":  # resumed-stopped-2: that run goes on with two ranks
        base, world = rest.split("-")
        shutil.copytree(folder / "lstm-sentiment" / base, folder / "lstm-sentiment" / name)
        size = [f"trainer.devices={world}", f"data.batch_size={32 // int(world)}", "trainer.max_epochs=3"]
        resume = ["train", "--resume", str(folder / "lstm-sentiment" / name), "--runs", str(folder), *size]
        commands = [resume] * int(world)
    else:
        raise SystemExit(f"no scenario {name}")
    processes = kill_test.fork_ranks(commands, home, prepare)
    if kind in ("killed", "stopped"):
        number = signal.SIGKILL if kind == "killed" else signal.SIGTERM
        several_ranks.signalled(processes[1], number, metrics, within=60)
    if kind == "stall":
        codes = [exit_code(processes[0])]
        os.kill(processes[1], signal.SIGKILL)
        return [*codes, exit_code(processes[1])]
    return [exit_code(process) for process in processes]


if __name__ == "__main__":
    several_ranks.main(run)
