"""Trainings in several processes, of either wing: scenarios that are run, and what became of them.

A scenario script (`tests/lightning/several_processes.py`, `tests/keras/several_workers.py`) starts copies of
one process that has imported its framework and computed nothing. What the ranks of a scenario said is in
`FOLDER/SCENARIO/rank-N.log`, the rows they saw in `rows-N.json`; exit codes and seconds go to
`FOLDER/codes.json`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from castiron.training.manifest import read_manifest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import kill_test

# --- in the scenario script -----------------------------------------------------------------------------


def slowed(loader: type) -> None:
    """So that a signal meets a training under way."""
    whole = loader.__iter__  # type: ignore[misc]

    def batches(self: Any) -> Iterator[Any]:
        for batch in whole(self):
            time.sleep(0.2)
            yield batch

    loader.__iter__ = batches  # type: ignore[misc]


def signalled(process: int, number: signal.Signals, metrics: Path, *, within: float) -> None:
    """Send a signal once a run has written some rows of metrics."""
    until = time.monotonic() + within
    while not (metrics.exists() and metrics.read_text().count("\n") > 2) and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process, number)


def exit_code(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main(run: Callable[[Path, str], list[int]]) -> None:
    """`SCRIPT FOLDER SCENARIO…`: each by `run(folder, scenario)`, which gives the exit codes of its ranks."""
    folder, scenarios = Path(sys.argv[1]), sys.argv[2:]
    kill_test.write_data(folder)
    codes = {}
    for name in scenarios:
        began = time.monotonic()
        codes[name] = [run(folder, name), round(time.monotonic() - began, 2)]
        (folder / "codes.json").write_text(json.dumps(codes))


# --- in the tests ---------------------------------------------------------------------------------------


class Trained:
    """What became of the scenarios."""

    def __init__(self, folder: Path, checkpoint: str) -> None:
        self.folder, self._checkpoint = folder, checkpoint
        self.codes: dict[str, tuple[list[int], float]] = json.loads((folder / "codes.json").read_text())

    def said(self, scenario: str, rank: int = 0) -> str:
        return (self.folder / scenario / f"rank-{rank}.log").read_text()

    def rows(self, run: str) -> list[dict[str, Any]]:
        lines = (self.folder / "lstm-sentiment" / run / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "items_per_s"} for line in lines]

    def seen(self, scenario: str, rank: int) -> list[list[int]]:
        found: list[list[int]] = json.loads((self.folder / scenario / f"rows-{rank}.json").read_text())
        return found

    def weights(self, run: str) -> str | None:
        manifest = read_manifest(self.folder / "lstm-sentiment" / run / "checkpoints" / self._checkpoint)
        assert manifest is not None
        return manifest.weights


def trained(
    script: Path, scenarios: Sequence[str], folder: Path, checkpoint: str, *, within: float, **variables: str
) -> Trained:
    """Run a script's scenarios.

    Args:
        checkpoint: the name of a run's last one.
    """
    done = subprocess.run(
        [sys.executable, str(script), str(folder), *scenarios],
        capture_output=True,
        text=True,
        timeout=within,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Trained(folder, checkpoint)
