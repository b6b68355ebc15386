"""A recipe trained by several processes: the losses of one, one decision, one end, and exact resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from castiron.health.table import read

sys.path.insert(0, str(Path(__file__).parents[1]))

import several_ranks
from several_ranks import Trained

SCRIPT = Path(__file__).with_name("several_processes.py")
SCENARIOS = (
    "one-1-f32", "ddp-4-f32", "fsdp-2-f32", "one-1-bf16", "ddp-4-bf16", "fsdp-4-bf16",
    "nan-ddp-4-hold", "nan-fsdp-2-raise", "differ-config", "differ-data", "differ-versions", "stall",
    "killed", "whole", "stopped", "resumed-stopped-2", "resumed-stopped-1",
)  # fmt: skip
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("several processes")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("several")
    return several_ranks.trained(SCRIPT, SCENARIOS, folder, "last.ckpt", within=500)


@pytest.mark.parametrize(
    ("one", "several", "tolerance"),
    [
        ("one-1-f32", "ddp-4-f32", 1e-6),
        ("one-1-f32", "fsdp-2-f32", 1e-6),
        ("one-1-bf16", "ddp-4-bf16", 2e-3),
        ("one-1-bf16", "fsdp-4-bf16", 2e-3),
    ],
)
def test_several_processes_train_like_one(trained: Trained, one: str, several: str, tolerance: float) -> None:
    world = int(several.split("-")[1])
    assert trained.codes[several][0] == [0] * world, trained.said(several)
    expected, found = trained.rows(one), trained.rows(several)
    assert len(found) == len(expected) == 8  # six steps, a validation, the test
    for row, other in zip(expected, found, strict=True):
        assert other == pytest.approx(row, rel=0, abs=tolerance)
    shares = [trained.seen(several, rank) for rank in range(world)]
    for step, rows in enumerate(trained.seen(one, 0)):
        together = [row for share in shares for row in share[step]]
        assert len(together) == 32
        assert sorted(together) == sorted(rows)
    assert [trained.said(several, rank) for rank in range(1, world)] == [""] * (world - 1)


@pytest.mark.parametrize("several", ["ddp-4-f32", "fsdp-2-f32"])
def test_health_is_that_of_all_processes(trained: Trained, several: str) -> None:
    expected, found = (read(trained.folder / "lstm-sentiment" / run) for run in ("one-1-f32", several))
    assert [s.step for s in found] == [s.step for s in expected] == [1, 3, 5]
    assert found[2].full
    for one, all_ in zip(expected, found, strict=True):
        assert set(all_.groups) == set(one.groups)
        assert set(all_.peaks) == set(one.peaks)
        for (kind, layer), s in one.groups.items():
            other = all_.groups[kind, layer]
            if kind in ("activations", "activation gradients") and layer != "head":
                continue  # each process pads its own rows
            assert (other.size, other.dtype) == (s.size, s.dtype), (kind, layer)
            assert other.exponents.sum() == s.size
            # a process's loss is the mean of its own rows
            scale = int(several.split("-")[1]) if kind == "activation gradients" else 1
            assert other.largest == pytest.approx(s.largest * scale, rel=1e-3, abs=1e-7), (kind, layer)
            assert other.rms == pytest.approx(s.rms * scale, rel=1e-3, abs=1e-7), (kind, layer)
            assert set(other.what_if) == set(s.what_if)
        for layer, moved in one.updates.items():
            update = all_.updates[layer].update
            assert update.wanted == moved.update.wanted
            assert update.ratio == pytest.approx(moved.update.ratio, rel=1e-3)


def test_a_nan_on_one_rank_is_held_by_all_and_told_once(trained: Trained) -> None:
    assert trained.codes["nan-ddp-4-hold"][0] == [0, 0, 0, 0]
    assert trained.codes["nan-fsdp-2-raise"][0] == [1, 1]
    for run, response in (("nan-ddp-4-hold", "hold"), ("nan-fsdp-2-raise", "raise")):
        home = trained.folder / "lstm-sentiment" / run
        (folder,) = (home / "incidents").iterdir()
        incident = json.loads((folder / "incident.json").read_text())
        world = int(run.split("-")[2])
        seen = trained.seen(f"{'ddp' if world == 4 else 'fsdp'}-{world}-f32", incident["rank"])
        assert 188 in seen[incident["step"]]  # the step, and the rank, that had the bad row
        assert incident["rank"] > 0
        assert (incident["code"], incident["reproduced"], incident["response"]) == ("N506", True, response)
        assert incident["producer"]["source"]["file"].endswith("ranks.py")
        summary = json.loads((home / "summary.json").read_text())
        assert (summary["held_steps"], summary["incidents"]) == (1, 1)
    assert (
        json.loads((trained.folder / "lstm-sentiment/nan-ddp-4-hold/summary.json").read_text())["steps"] == 5
    )


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        (
            "differ-config",
            "X830  Rank 1 has another 'optimizer.lr' than rank 0 (config). Expected 0.001 (rank 0). Received "
            "0.002 (rank 1)",
        ),
        ("differ-data", "X830  Rank 1 has another 'data.train, file 1' than rank 0 (data). Expected blake3 "),
        ("differ-versions", "X830  Rank 1 has another 'numpy' than rank 0 (versions and code). Expected "),
    ],
)
def test_a_rank_that_differs_is_refused_before_anything_is_trained(
    trained: Trained, scenario: str, message: str
) -> None:
    assert trained.codes[scenario][0] == [2, 2]
    assert message in trained.said(scenario)
    assert trained.said(scenario, 1) == ""
    assert not (trained.folder / "lstm-sentiment" / scenario).exists()


def test_a_rank_that_is_killed_or_gives_no_answer_ends_all(trained: Trained) -> None:
    codes, _ = trained.codes["killed"]
    assert codes == [75, -signal.SIGKILL]
    assert "X831  Rank 0 lost another process." in trained.said("killed")
    assert trained.codes["stall"][0][0] == 75
    assert "X831  Rank 0 got no answer from another process in time." in trained.said("stall")
    for run in ("killed", "stall"):
        summary = json.loads((trained.folder / "lstm-sentiment" / run / "summary.json").read_text())
        assert summary["status"] == "stopped"


def test_a_signal_to_one_rank_stops_all_at_one_step_and_the_run_goes_on_as_if_nothing_was(
    trained: Trained,
) -> None:
    assert trained.codes["stopped"][0] == [75, 75]
    stopped = trained.rows("stopped")
    assert 3 <= stopped[-1]["step"] < 18
    assert trained.codes["resumed-stopped-2"][0] == [0, 0]
    assert trained.rows("resumed-stopped-2") == trained.rows("whole")
    assert trained.weights("resumed-stopped-2") == trained.weights("whole")


def test_a_run_goes_on_with_another_number_of_processes_on_the_same_batches(trained: Trained) -> None:
    assert trained.codes["resumed-stopped-1"][0] == [0]
    assert "The checkpoint is of 2 processes, the run goes on with 1" in trained.said("resumed-stopped-1")
    whole, found = trained.rows("whole"), trained.rows("resumed-stopped-1")
    for row, other in zip(whole, found, strict=True):
        assert other == pytest.approx(row, rel=0, abs=1e-5)


def test_castiron_starts_the_processes_itself_and_says_which_was_killed(trained: Trained) -> None:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import several_processes
    finally:
        sys.path.remove(str(SCRIPT.parent))
    command = several_processes.command(trained.folder, "started", 2, "trainer.max_epochs=1000")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "castiron", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as process:
        metrics = trained.folder / "lstm-sentiment" / "started" / "metrics.jsonl"
        until = time.monotonic() + 90
        while not metrics.exists() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.05)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(workers[1]), signal.SIGKILL)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "X831  Rank 1 of 2 was killed by SIGKILL; the others were ended too." in said
    assert f"castiron train --resume {trained.folder / 'lstm-sentiment' / 'started'}" in said
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
