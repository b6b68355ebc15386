"""Trainings in several processes, for `test_several_processes.py`: `several_processes.py FOLDER SCENARIO…`.

All are copies of one process that has imported torch and trained nothing. What the ranks of a scenario said
is in `FOLDER/SCENARIO/rank-N.log`, the rows they saw in `rows-N.json`; exit codes and seconds go to
`FOLDER/codes.json`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import kill_test
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
    """So that a signal meets a training under way; each rank says when it is."""
    from castiron.lightning.loaders import TorchLoader

    whole = TorchLoader.__iter__

    def batches(self: TorchLoader) -> Iterator[Any]:
        for batch in whole(self):
            time.sleep(0.2)
            yield batch

    TorchLoader.__iter__ = batches  # type: ignore[method-assign]


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
        until = time.monotonic() + 60
        while not (metrics.exists() and metrics.read_text().count("\n") > 2) and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(processes[1], signal.SIGKILL if kind == "killed" else signal.SIGTERM)
    if kind == "stall":
        codes = [os.waitstatus_to_exitcode(os.waitpid(processes[0], 0)[1])]
        os.kill(processes[1], signal.SIGKILL)
        return [*codes, os.waitstatus_to_exitcode(os.waitpid(processes[1], 0)[1])]
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def main(folder: Path, scenarios: list[str]) -> None:
    kill_test.write_data(folder)
    codes = {}
    for name in scenarios:
        began = time.monotonic()
        codes[name] = [run(folder, name), round(time.monotonic() - began, 2)]
        (folder / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
