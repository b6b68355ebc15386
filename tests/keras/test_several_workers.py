"""A recipe trained by several TensorFlow processes: the losses of one, one decision, exact resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from castiron.training.manifest import read_manifest

SCRIPT = Path(__file__).with_name("several_workers.py")
SCENARIOS = ("plain-1", "plain-2", "nan", "differ", "killed", "resumed-killed", "whole")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("several workers")]


class Trained:
    """What became of the scenarios."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
        manifest = read_manifest(self.folder / "lstm-sentiment" / run / "checkpoints" / "last.safetensors")
        assert manifest is not None
        return manifest.weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("several")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), *SCENARIOS],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Trained(folder)


def test_several_processes_train_like_one_on_rows_of_their_own(trained: Trained) -> None:
    assert trained.codes["plain-2"][0] == [0, 0], trained.said("plain-2")
    expected, found = trained.rows("plain-1"), trained.rows("plain-2")
    assert len(found) == len(expected) == 8  # six steps, a validation, the test
    for row, other in zip(expected, found, strict=True):
        assert other == pytest.approx(row, rel=0, abs=1e-6)
    shares = [trained.seen("plain-2", rank) for rank in range(2)]
    for step, rows in enumerate(trained.seen("plain-1", 0)):
        together = [row for share in shares for row in share[step]]
        assert len(together) == 32
        assert sorted(together) == sorted(rows)


def test_a_nan_on_one_rank_is_held_by_all_and_told_once(trained: Trained) -> None:
    assert trained.codes["nan"][0] == [0, 0], trained.said("nan")
    home = trained.folder / "lstm-sentiment" / "nan"
    (folder,) = (home / "incidents").iterdir()
    incident = json.loads((folder / "incident.json").read_text())
    seen = trained.seen("plain-2", incident["rank"])
    assert 188 in seen[incident["step"]]  # the step, and the rank, that had the bad row
    assert (incident["code"], incident["reproduced"], incident["response"]) == ("N504", True, "hold")
    assert incident["producer"]["source"]["file"].endswith("several_workers.py")
    summary = json.loads((home / "summary.json").read_text())
    assert (summary["steps"], summary["held_steps"], summary["incidents"]) == (5, 1, 1)
    assert trained.said("nan").count("N504") == 1
    assert "N504" not in trained.said("nan", 1)


def test_a_rank_that_differs_is_refused_before_anything_is_trained(trained: Trained) -> None:
    assert trained.codes["differ"][0] == [2, 2]
    assert (
        "X830  Rank 1 has another 'optimizer.lr' than rank 0 (config). Expected 0.001 (rank 0). Received "
        "0.002 (rank 1)"
    ) in trained.said("differ")
    assert not (trained.folder / "lstm-sentiment" / "differ").exists()


def test_a_rank_that_is_killed_ends_all_and_the_run_goes_on_as_if_nothing_was(trained: Trained) -> None:
    assert trained.codes["killed"][0] == [75, -signal.SIGKILL], trained.said("killed")
    assert "X831  Rank 0 lost another process." in trained.said("killed")
    summary = json.loads((trained.folder / "lstm-sentiment" / "killed" / "summary.json").read_text())
    assert summary["status"] == "stopped"
    assert trained.codes["resumed-killed"][0] == [0, 0], trained.said("resumed-killed")
    assert trained.rows("resumed-killed") == trained.rows("whole")
    assert trained.weights("resumed-killed") == trained.weights("whole")
