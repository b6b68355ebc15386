"""Several processes train like one: losses, rows and decisions under each strategy and policy, as a table.

    python scripts/ranks.py

A small lstm-sentiment without dropout takes six steps of 32 rows an epoch, in one process and in two and four
(gloo, on the CPU), under DDP and FSDP, float32 and bf16-mixed. Each line says how far losses and metrics
(training, validation, test) lie from those of one process under the same policy, whether each step took the
same 32 rows, none twice, and whether a step in which one rank has a loss of NaN (once an epoch) was held by
all and told once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import kill_test

BATCH = 32
"""Rows of a step, over all processes."""
STEPS = 6
BAD_ROW = 188
SETTINGS = (
    "model.embedding=8",
    "model.hidden=8",
    "model.dropout=0.0",
    "model.embedding_dropout=0.0",
    "model.word_dropout=0.0",
    "model.text.max_vocabulary=200",
    "health.every=2",
    "trainer.log_every=1",
    "trainer.threads=1",
    "trainer.device=cpu",
    "trainer.max_epochs=1",
    f"trainer.limit_train={STEPS}",
    "trainer.limit_test=1",
    "trainer.timeout=20",
    "audit.level=off",
)
TOLERANCE = {"float32": 1e-6, "bf16-mixed": 2e-3}
"""Largest difference from one process, absolute, in losses of 0.7: sums are taken in another order."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategies", default="ddp,fsdp")
    parser.add_argument("--processes", default="2,4")
    parser.add_argument("--policies", default="float32,bf16-mixed")
    parser.add_argument("--epochs", type=int, default=5, help="of six steps")
    parser.add_argument("--folder", type=Path, help="where runs are kept; a temporary folder by default")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="castiron-ranks-"))
    try:
        found = table(
            folder,
            arguments.strategies.split(","),
            [int(n) for n in arguments.processes.split(",")],
            arguments.policies.split(","),
            arguments.epochs,
        )
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(found, indent=2) if arguments.json else as_text(found))
    return 0 if all(row["like one"] and row["NaN held by all, told once"] for row in found) else 1


def table(
    folder: Path, strategies: list[str], processes: list[int], policies: list[str], epochs: int
) -> list[dict[str, Any]]:
    """A row for each strategy, number of processes and policy."""
    kill_test.write_data(folder)
    length = f"trainer.max_epochs={epochs}"
    found = []
    for policy in policies:
        _train(folder, "one", 1, policy, length)
        for strategy in strategies:
            for world in processes:
                codes = _train(folder, strategy, world, policy, length)
                difference, same_rows = compared(
                    folder, run_name("one", 1, policy), run_name(strategy, world, policy), world
                )
                bad = f"nan-{run_name(strategy, world, policy)}"
                hold = (length, "guard.response=hold")
                held = _train(folder, strategy, world, policy, *hold, name=bad, prepare=bad_loss)
                found.append(
                    {
                        "strategy": strategy,
                        "processes": world,
                        "policy": policy,
                        "largest difference": difference,
                        "same rows": same_rows,
                        "like one": not any(codes) and same_rows and difference <= TOLERANCE[policy],
                        "NaN held by all, told once": not any(held) and held_once(folder, bad, world, epochs),
                    }
                )
    return found


def run_name(strategy: str, world: int, policy: str) -> str:
    return f"{strategy}-{world}-{policy}"


def compared(folder: Path, one: str, several: str, world: int) -> tuple[float, bool]:
    """→ largest difference of losses and metrics; whether each step took the same rows, none twice."""
    expected, found = rows_of(folder, one), rows_of(folder, several)
    difference = max(
        abs(row[name] - other[name])
        for row, other in zip(expected, found, strict=True)
        for name in row
        if name.partition("/")[2]
    )
    shares = [seen_by(folder, several, rank) for rank in range(world)]
    same = all(
        sorted(row for share in shares for row in share[step]) == sorted(rows)
        for step, rows in enumerate(seen_by(folder, one, 0))
    )
    return difference, same


def held_once(folder: Path, run: str, world: int, epochs: int) -> bool:
    """Whether a step of each epoch was held, and one incident for each names the rank that reproduced it."""
    home = folder / "lstm-sentiment" / run
    summary = json.loads((home / "summary.json").read_text())
    incidents = [json.loads(path.read_text()) for path in home.glob("incidents/*/incident.json")]
    return (
        (summary["held_steps"], summary["incidents"], summary["steps"])
        == (epochs, epochs, epochs * (STEPS - 1))
        and len(incidents) == epochs
        and all(i["rank"] in range(world) and i["reproduced"] is True for i in incidents)
    )


def rows_of(folder: Path, run: str) -> list[dict[str, Any]]:
    """What a run logged, but for its clock."""
    lines = (folder / "lstm-sentiment" / run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "items_per_s"} for line in lines]


def seen_by(folder: Path, run: str, rank: int) -> list[list[int]]:
    """Row numbers of each training batch of a rank (`writes_rows`)."""
    found: list[list[int]] = json.loads((folder / run / f"rows-{rank}.json").read_text())
    return found


def as_text(found: list[dict[str, Any]]) -> str:
    def cell(value: Any) -> str:
        return f"{value:.1e}" if isinstance(value, float) else str(value)

    lines = [list(found[0]), *([cell(v) for v in row.values()] for row in found)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines)


# --- a training -------------------------------------------------------------------------------------------


def _train(
    folder: Path,
    strategy: str,
    world: int,
    policy: str,
    *more: str,
    name: str | None = None,
    prepare: Callable[[int], None] | None = None,
) -> list[int]:
    """Train to the end. → exit codes by rank."""
    name = name or run_name(strategy, world, policy)
    home = folder / name
    home.mkdir()
    more = (f"trainer.strategy={'auto' if strategy == 'one' else strategy}", f"precision={policy}", *more)
    processes = kill_test.fork_ranks(
        [command(folder, name, world, *more)] * world, home, prepare or writes_rows(home)
    )
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def command(folder: Path, name: str, world: int, *more: str, data: Path | None = None) -> list[str]:
    """What each rank says to castiron."""
    files = [f"data.{split}={(data or folder) / split}.csv" for split in kill_test.ROWS]
    several = [f"data.batch_size={BATCH // world}", f"trainer.devices={world}"]
    where = ["--name", name, "--runs", str(folder)]
    return ["train", "lstm-sentiment", *SETTINGS, *files, *several, *more, *where]


def writes_rows(folder: Path) -> Callable[[int], None]:
    """Each rank notes the training rows it sees."""

    def prepare(rank: int) -> None:
        from castiron.lightning.loaders import TorchLoader

        whole = TorchLoader.__iter__
        seen: list[list[int]] = []

        def batches(self: TorchLoader) -> Iterator[Any]:
            for batch in whole(self):
                if self.batches.rows == kill_test.ROWS["train"]:
                    seen.append(batch["row"].tolist())
                    (folder / f"rows-{rank}.json").write_text(json.dumps(seen))
                yield batch

        TorchLoader.__iter__ = batches  # type: ignore[method-assign]

    return prepare


def bad_loss(rank: int) -> None:
    """The loss is NaN where a training batch has a certain row."""
    import torch

    from castiron_recipes.lstm_sentiment import LSTMSentiment

    own = LSTMSentiment.loss

    def bad(batch: Any) -> bool:
        return torch.is_grad_enabled() and BAD_ROW in batch["row"].tolist()

    def loss(self: Any, outputs: Any, batch: Any) -> Any:
        found = own(self, outputs, batch)
        return found * float("nan") if bad(batch) else found

    LSTMSentiment.loss = loss  # type: ignore[method-assign]


if __name__ == "__main__":
    raise SystemExit(main())
