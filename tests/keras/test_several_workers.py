"""A recipe trained by several TensorFlow processes: the losses of one, one decision, exact resume."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import several_ranks
from several_ranks import Trained

SCRIPT = Path(__file__).with_name("several_workers.py")
SCENARIOS = ("plain-1", "plain-2", "nan", "differ", "waiting", "killed", "resumed-killed", "whole")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("several workers")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("several")
    return several_ranks.trained(
        SCRIPT, SCENARIOS, folder, "last.safetensors", within=280, TF_CPP_MIN_LOG_LEVEL="3"
    )


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


def test_a_rank_that_is_killed_where_others_wait_for_it_ends_them_too(trained: Trained) -> None:
    codes, seconds = trained.codes["waiting"]
    assert codes == [75, -signal.SIGKILL], trained.said("waiting")
    assert seconds < 60  # trainer.timeout is 200
    assert "X831  Rank 0 lost another process." in trained.said("waiting")
