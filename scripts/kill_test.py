"""Kill trainings at random instants, resume them, and compare where they end with one that nobody killed.

    python scripts/kill_test.py --kills 100

Each run is a process of its own that trains a small recipe (`--recipe`, lstm-sentiment or tabular) with
accumulation, an average of the weights, a schedule, dropout and shuffled data, a checkpoint after every other
step. It is killed (SIGKILL) once, or `--times` times, at an instant drawn from the whole of an uninterrupted
run: set-up, steps, validation, a checkpoint half written. Then it is resumed until it completes, and these
must be equal, bit for bit, to the uninterrupted run: the weights of the last checkpoint, those of the best
one, the rows of metrics.jsonl but for their clock, and the test metrics.

With `--at training` the instant is drawn from the steps alone: once the run has logged a step that was drawn,
and up to two steps later. That tells more where setting up takes most of a run, and where other work on the
machine makes one run slower than the next.

With `--processes 2` each run is trained by two processes (`--strategy ddp` or `fsdp`). Every other time one
of them alone is killed, and the others must end by themselves; else all are killed at once. With `--backend
tensorflow` the runs are of that wing.

Processes are forked from one that has imported torch and trained nothing, so that a run takes a second or
two; `--fresh` starts each by the command line instead.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONFIG = (
    "data.batch_size=16",
    "health.every=1000",
    "optimizer.schedule=cosine",
    "trainer.accumulate=2",
    "trainer.ema=0.9",
    "trainer.limit_train=12",
    "trainer.limit_validation=2",
    "trainer.limit_test=1",
    "trainer.max_epochs=4",
    "trainer.validate_every=0.5",
    "trainer.checkpoint_every=2",
    "trainer.log_every=1",
    "trainer.threads=1",
    "audit.level=off",
)
ROWS_OF_STEP = 32
ROWS = {"train": 192, "validation": 40, "test": 20}
"""Split → rows."""
RECIPES = {
    "lstm-sentiment": (
        "model.embedding=8",
        "model.hidden=8",
        "model.layers=2",
        "model.text.max_vocabulary=200",
    ),
    "tabular": ("model.hidden=[16]",),
}
"""Recipe → a small model of it."""
POLICIES = ("float32", "bf16-mixed", "bf16-true")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="runs that are killed")
    parser.add_argument("--seconds", type=float, help="begin no further run after so many")
    parser.add_argument("--times", type=int, default=1, help="kills per run")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument(
        "--at",
        default="any",
        choices=("any", "training"),
        help="instants: from the whole run, or from its steps",
    )
    parser.add_argument("--policies", default=",".join(POLICIES), help="policies, in turn")
    parser.add_argument("--backend", default="torch", choices=("torch", "tensorflow"))
    parser.add_argument("--recipe", default="lstm-sentiment", choices=tuple(RECIPES))
    parser.add_argument("--processes", type=int, default=1, help="that train a run together")
    parser.add_argument(
        "--strategy",
        default="auto",
        help="of several processes: ddp (auto) or fsdp; in TensorFlow multi-worker (auto)",
    )
    parser.add_argument("--fresh", action="store_true", help="start each run by the command line")
    parser.add_argument(
        "--folder",
        type=Path,
        help="where runs are kept, and uninterrupted ones found again; a temporary folder by default",
    )
    parser.add_argument("--json", action="store_true", help="the account, for programs")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="castiron-kills-"))
    try:
        account = kill(
            folder,
            kills=arguments.kills,
            times=arguments.times,
            seconds=arguments.seconds,
            seed=arguments.seed,
            at=arguments.at,
            policies=arguments.policies.split(","),
            start=functools.partial(
                by_command if arguments.fresh else by_fork,
                backend=arguments.backend,
                processes=arguments.processes,
                strategy=arguments.strategy,
                recipe=arguments.recipe,
            ),
            runs=folder / arguments.recipe,
            tell=(lambda line: None) if arguments.json else lambda line: print(line, flush=True),
        )
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(account, indent=2) if arguments.json else as_text(account))
    return 0 if account["different"] == 0 else 1


Start = Callable[[Path, str, str, bool], list[int]]
"""Folder of runs, policy, name, whether it goes on → process ids, that of rank 0 first."""
TIME_OUT_S = 60.0
"""Seconds that processes have to end once one of them was killed."""


def kill(
    folder: Path,
    *,
    kills: int,
    times: int = 1,
    seconds: float | None = None,
    seed: int = 0,
    at: str = "any",
    runs: Path,
    policies: list[str],
    start: Start,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Kill so many runs and resume them. → the account.

    Args:
        runs: where `start` puts them.
    """
    draw = random.Random(seed)
    write_data(folder)
    whole: dict[str, tuple[dict[str, Any], float, float]] = {}
    if not (runs / "warm-up").exists():
        wait(start(folder, policies[0], "warm-up", False))
    for policy in policies:
        run = runs / f"whole-{policy}"
        began = time.monotonic()
        if not (run / "summary.json").exists():
            code = wait(start(folder, policy, run.name, False))
            if code != 0:
                raise SystemExit(f"The uninterrupted run under {policy} ended with {code}.")
        took = max(time.monotonic() - began, json.loads((run / "summary.json").read_text())["duration_s"])
        whole[policy] = (end_of(run), took, seconds_of_step(run))
        tell(f"whole run under {policy}: {took:.2f} s, weights {whole[policy][0]['last'][:12]}")
    moments: Counter[str] = Counter()
    different: list[str] = []
    killed = 0
    done, until = 0, math.inf if seconds is None else time.monotonic() + seconds
    for number in range(kills):
        if time.monotonic() > until:
            break
        done += 1
        policy = policies[number % len(policies)]
        expected, took, step_s = whole[policy]
        run = runs / f"killed-{seed}-{number}"
        for time_ in range(times):
            processes = start(folder, policy, run.name, time_ > 0)
            if at == "any":
                time.sleep(draw.uniform(0, took))
            else:
                wait_for_step(run, processes, draw.choice(steps_of(expected)))
                time.sleep(draw.uniform(0, 2 * step_s))
            alone = number % 2 == 1 and len(processes) > 1
            victims = [draw.choice(processes)] if alone else processes
            if any(ended(process) for process in victims):
                wait(processes)
                moments["had ended already"] += 1
                break
            for process in victims:
                os.kill(process, signal.SIGKILL)
            if not ends_within(processes, TIME_OUT_S):
                raise SystemExit(f"{run.name}: a process outlives one that was killed by {TIME_OUT_S:g} s.")
            killed += 1
            moments[("one alone, " if alone else "") + moment(run)] += 1
        code = wait(start(folder, policy, run.name, True))
        found = end_of(run) if code == 0 else {"exit code": code}
        if found != expected:
            parts = [k for k in {**expected, **found} if expected.get(k) != found.get(k)]
            different.append(f"{run.name} under {policy}: {', '.join(parts)} differ")
            tell(different[-1])
        else:
            shutil.rmtree(run)
    return {
        "runs": done,
        "killed": killed,
        "different": len(different),
        "which": different,
        "killed while": dict(moments.most_common()),
        "weights": {p: e["last"] for p, (e, *_) in whole.items()},
    }


def write_data(folder: Path) -> None:
    """Small files of made-up reviews: reading the recipe's own data would take longer than the training."""
    draw = random.Random(1)
    words = ["good", "bad", "film", "plot", "a", "the", "very", "not", "fun", "dull", "actor", "scene"]
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in ROWS.items():
        lines = ["text,label"]
        for _ in range(rows):
            text = draw.choices(words, k=draw.randint(3, 20))
            lines.append(f"{' '.join(text)},{int(text.count('good') > text.count('bad'))}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def as_text(account: dict[str, Any]) -> str:
    lines = [
        f"{account['killed']} kills in {account['runs']} runs; {account['different']} ended differently."
    ]
    lines += [f"  {count:4d}  {what}" for what, count in account["killed while"].items()]
    return "\n".join(lines)


# --- processes --------------------------------------------------------------------------------------------


def by_command(
    folder: Path,
    policy: str,
    name: str,
    again: bool,
    *,
    processes: int = 1,
    strategy: str = "auto",
    backend: str = "torch",
    recipe: str = "lstm-sentiment",
) -> list[int]:
    """A run by the command line, in a Python of its own; it starts the processes of a run itself."""
    arguments = arguments_of(folder, policy, name, again, processes, strategy, backend, recipe)
    command = [sys.executable, "-m", "castiron", "train", *arguments, "-q"]
    with open(os.devnull, "wb") as nowhere:
        return [subprocess.Popen(command, stdout=nowhere, stderr=nowhere).pid]


def by_fork(
    folder: Path,
    policy: str,
    name: str,
    again: bool,
    *,
    processes: int = 1,
    strategy: str = "auto",
    backend: str = "torch",
    recipe: str = "lstm-sentiment",
) -> list[int]:
    """The same, in copies of this process."""
    arguments = arguments_of(folder, policy, name, again, processes, strategy, backend, recipe)
    return fork_ranks([["train", *arguments, "--quiet"]] * processes, backend=backend)


def fork_ranks(
    commands: list[list[str]],
    output: Path | None = None,
    prepare: Callable[[int], None] | None = None,
    backend: str = "torch",
) -> list[int]:
    """Copies of this process, each of which runs a command of castiron; several are ranks of one training, as
    torchrun would start them.

    Args:
        output: a folder for what they say, in `rank-N.log`.
        prepare: called in each, with its rank.
    """
    from castiron.cli.main import run

    # What takes long to import, and trains nothing yet.
    if backend == "tensorflow":
        names = ["castiron_recipes.lstm_sentiment.keras_model", "castiron.keras.session"]
    else:
        names = ["castiron_recipes.lstm_sentiment.model", "castiron.lightning.session"]
        names.append("castiron.lightning.strategies")
    for name in names:
        importlib.import_module(name)

    store = tempfile.mktemp(prefix="castiron-store-")
    children = []
    for rank, command in enumerate(commands):
        child = os.fork()
        if child:
            children.append(child)
            continue
        code = 1
        try:
            name = os.devnull if output is None else str(output / f"rank-{rank}.log")
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            if len(commands) > 1:
                os.environ.update(environment_of(rank, len(commands), store))
            if prepare is not None:
                prepare(rank)
            code = run(command)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return children


def environment_of(rank: int, world: int, store: str) -> dict[str, str]:
    """What torchrun tells a process, and the file by which they find each other."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
        "TORCHELASTIC_RUN_ID": "kills",
        "CASTIRON_STORE": store,
        "GLOO_SOCKET_IFNAME": "lo",
    }


def arguments_of(
    folder: Path,
    policy: str,
    name: str,
    again: bool,
    processes: int = 1,
    strategy: str = "auto",
    backend: str = "torch",
    recipe: str = "lstm-sentiment",
) -> list[str]:
    """What to say to `castiron train`. A run that was killed before it had a config is begun again."""
    run = folder / recipe / name
    if again and (run / "config.yaml").exists():
        return ["--resume", str(run), "--runs", str(folder)]
    files = [f"data.{split}={folder / split}.csv" for split in ROWS] if recipe == "lstm-sentiment" else []
    several: list[str] = []
    if processes > 1:
        size = f"data.batch_size={16 // processes}"
        several = [f"trainer.devices={processes}", f"trainer.strategy={strategy}", size]
        several += ["trainer.ema=null"] if strategy == "fsdp" else []
    where = [f"backend={backend}", f"precision={policy}", "--name", name, "--runs", str(folder)]
    return [recipe, *CONFIG, *RECIPES[recipe], *several, *files, *where]


def wait(processes: list[int]) -> int:
    """The first exit code that is not 0, once all have ended."""
    codes = [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in processes if p not in _ENDED]
    codes += [_ENDED[p] for p in processes if p in _ENDED]
    return next((code for code in codes if code), 0)


_ENDED: dict[int, int] = {}
"""Exit codes of processes that were asked after."""


def ended(process: int) -> bool:
    if process not in _ENDED:
        found, status = os.waitpid(process, os.WNOHANG)
        if found != process:
            return False
        _ENDED[process] = os.waitstatus_to_exitcode(status)
    return True


def ends_within(processes: list[int], seconds: float) -> bool:
    """Whether all end in this time; those that do not are killed."""
    until = time.monotonic() + seconds
    while not all(ended(process) for process in processes):
        if time.monotonic() > until:
            for process in processes:
                if not ended(process):
                    os.kill(process, signal.SIGKILL)
            return False
        time.sleep(0.01)
    return True


def wait_for_step(run: Path, processes: list[int], step: int) -> None:
    """Until a run has logged this step, or one of its processes has ended."""
    file = run / "metrics.jsonl"
    while not any(ended(process) for process in processes):
        lines = file.read_text(encoding="utf-8").splitlines(True) if file.exists() else []
        if any(json.loads(line)["step"] >= step for line in lines if line.endswith("\n")):
            return
        time.sleep(0.002)


def steps_of(end: dict[str, Any]) -> list[int]:
    """The steps that a run has logged."""
    return [row["step"] for row in end["rows"] if "train/loss" in row]


def seconds_of_step(run: Path) -> float:
    """What a step of a run took: the median."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return float(
        statistics.median(ROWS_OF_STEP / row["items_per_s"] for row in rows if row.get("items_per_s"))
    )


def moment(run: Path) -> str:
    """What a killed run was about, as far as its folder tells."""
    if not (run / "config.yaml").exists():
        return "before its config was written"
    if list(run.glob("checkpoints/.*")):
        return "a checkpoint half written"
    if not (run / "checkpoints").is_dir() or not list((run / "checkpoints").iterdir()):
        return "before its first checkpoint"
    return "between checkpoints"


def end_of(run: Path) -> dict[str, Any]:
    """What must be equal: weights of the last and the best checkpoint, and what was logged."""
    from castiron.training.checkpoint_file import check_intact
    from castiron.training.manifest import read_manifest

    found: dict[str, Any] = {}
    for name in ("last", "best"):
        (path,) = (run / "checkpoints").glob(f"{name}.*")
        check_intact(path)
        manifest = read_manifest(path)
        assert manifest is not None
        found[name] = manifest.weights
        found[f"{name} step"] = manifest.step
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found["rows"] = [{k: v for k, v in row.items() if k != "items_per_s"} for row in rows]
    summary = json.loads((run / "summary.json").read_text())
    found["test"] = summary["metrics"]["test"]
    return found


if __name__ == "__main__":
    raise SystemExit(main())
