"""Checkpoints on a disk that fails, and of processes that are killed: the newest whole one is used."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from castiron.diagnostics import Finding, ManifestError, RunError
from castiron.lightning.checkpoints import write_checkpoint
from castiron.training import RunDirectory, load_config
from castiron.training.checkpoint_file import check_intact, damage
from castiron.training.checkpoints import sweep, to_resume
from castiron.training.launch import resume, train
from castiron.training.manifest import Manifest

MANIFEST = {"castiron": "0", "policy": "float32", "declared": {}}


def wrote(path: Path, step: int, keep: int = 3) -> None:
    state = {"state_dict": {"w": torch.full((50,), float(step))}, "global_step": step}
    write_checkpoint(state, Manifest(step=step, **MANIFEST), path, keep=keep)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path, "tiny", "run")


def test_older_ones_move_on_and_are_dropped(run: RunDirectory) -> None:
    for step in range(1, 6):
        wrote(run.checkpoints / "last.ckpt", step)
    names = {p.name: int(torch.load(p, weights_only=True)["global_step"]) for p in run.checkpoints.iterdir()}
    assert names == {"last.ckpt": 5, "last-2.ckpt": 4, "last-3.ckpt": 3}
    wrote(run.checkpoints / "last.ckpt", 6, keep=1)
    assert {p.name for p in run.checkpoints.iterdir()} == {"last.ckpt"}


def test_the_newest_whole_one_is_used_and_torn_ones_are_named(run: RunDirectory) -> None:
    for step in range(1, 4):
        wrote(run.checkpoints / "last.ckpt", step)
    wrote(run.checkpoints / "best.ckpt", 2)
    last = run.checkpoints / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-40])
    second = run.checkpoints / "last-2.ckpt"
    data = bytearray(second.read_bytes())
    data[200] ^= 1
    second.write_bytes(bytes(data))
    told: list[Finding] = []
    found = to_resume(run, told.append)
    assert found == run.checkpoints / "best.ckpt"
    assert [str(f) for f in told] == [
        "C615 A damaged checkpoint is passed over: its bytes are not those that were written. "
        f"Received 'last-2.ckpt'; 'best.ckpt' is used, of step 2 at {second}. "
        "Nothing needs to be done; if it happens often, suspect the disk.",
        "C615 A damaged checkpoint is passed over: its seal is gone. "
        f"Received 'last.ckpt'; 'best.ckpt' is used, of step 2 at {last}. "
        "Nothing needs to be done; if it happens often, suspect the disk.",
    ]


def test_where_none_is_whole_each_is_named(run: RunDirectory) -> None:
    assert to_resume(run) is None
    wrote(run.checkpoints / "last.ckpt", 1)
    wrote(run.checkpoints / "last.ckpt", 2)
    for path in run.checkpoints.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ManifestError) as error:
        to_resume(run)
    assert [f.code for f in error.value.findings] == ["C601", "C601"]


@pytest.mark.parametrize("cut", [0, 1, 3, 10, 100, 500, 79, 80, 81, 22, 102])
def test_every_cut_is_seen(run: RunDirectory, cut: int) -> None:
    path = run.checkpoints / "last.ckpt"
    wrote(path, 1)
    assert damage(path) is None
    if cut:
        path.write_bytes(path.read_bytes()[:-cut])
        with pytest.raises(ManifestError, match="C601"):
            to_resume(run)


def test_every_flipped_bit_is_seen(run: RunDirectory) -> None:
    """Each byte of a small checkpoint, one bit of it."""
    path = run.checkpoints / "last.ckpt"
    wrote(path, 1)
    whole = path.read_bytes()
    unseen = []
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        try:
            to_resume(run)
            unseen.append(at)
        except ManifestError:
            pass
    assert unseen == []


def test_growth_is_seen(run: RunDirectory) -> None:
    path = run.checkpoints / "last.ckpt"
    wrote(path, 1)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ManifestError, match="C601"):
        check_intact(path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("when", ["fsync", "replace", "link"])
def test_a_disk_that_fails_leaves_the_checkpoint_that_is_there(
    number: int, when: str, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run.checkpoints / "last.ckpt"
    wrote(path, 1)

    def fails(*arguments: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, when, fails)
    if when == "link":  # a file system without links: the older one is moved instead
        wrote(path, 2)
    else:
        with pytest.raises(RunError, match="X819 The file cannot be written"):
            wrote(path, 2)
    monkeypatch.undo()
    found = to_resume(run)
    assert found is not None
    assert torch.load(found, weights_only=True)["global_step"] == (2 if when == "link" else 1)
    assert not [p.name for p in run.checkpoints.iterdir() if p.name.startswith(".")]


def test_what_a_killed_process_had_half_written_is_swept(run: RunDirectory) -> None:
    for name in (".last.ckpt.123.part", ".summary.json.ab12.part"):
        (run.checkpoints / name).write_bytes(b"half")
        (run.path / name).write_bytes(b"half")
    (run.path / "notes.txt").write_text("mine")
    for name in (".step-7.4c228ae2.part", "step-6"):
        (run.incidents / name).mkdir(parents=True)
        (run.incidents / name / "batch.safetensors").write_bytes(b"half")
    sweep(run)
    left = {str(p.relative_to(run.path)) for p in run.path.rglob("*")}
    whole = {"incidents", "incidents/step-6", "incidents/step-6/batch.safetensors"}
    assert left == {"checkpoints", "notes.txt", *whole}


# --- whole runs -------------------------------------------------------------------------------------------

TINY = (
    "data.batch_size=32",
    "model.embedding=8",
    "model.hidden=8",
    "model.text.max_vocabulary=200",
    "trainer.limit_train=4",
    "trainer.limit_validation=1",
    "trainer.limit_test=1",
    "trainer.max_epochs=1",
    "trainer.threads=1",
    "trainer.checkpoint_every=1",
    "trainer.log_every=1",
    "audit.level=off",
)


def weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run.checkpoint("last"), weights_only=True)["state_dict"]
    return state


def test_a_run_with_a_torn_checkpoint_goes_on_from_the_one_before_to_the_same_weights(tmp_path: Path) -> None:
    steady = (*TINY, "optimizer.schedule=constant")  # a schedule would follow max_steps
    whole, _ = train(load_config("lstm-sentiment", steady), runs=tmp_path, name="whole")
    short = load_config("lstm-sentiment", [*steady, "trainer.max_steps=3"])
    torn, _ = train(short, runs=tmp_path, name="torn")
    assert {p.name for p in torn.checkpoints.iterdir()} == {"last.ckpt", "last-2.ckpt"} | {
        p.name for p in torn.checkpoints.glob("best*")
    }
    for path in torn.checkpoints.glob("best*"):
        path.unlink()
    last = torn.checkpoint("last")
    last.write_bytes(last.read_bytes()[:2000])
    told: list[Finding] = []
    reporter: Any = type("Tell", (), {"__getattr__": lambda self, name: lambda *a, **k: None})()
    reporter.verbosity, reporter.findings = "quiet", told.extend
    _, outcome = resume(torn, ["trainer.max_steps=null"], reporter=reporter)
    assert outcome.steps == 4
    assert "C615" in {f.code for f in told}
    assert all(torch.equal(v, weights(torn)[n]) for n, v in weights(whole).items())


def test_a_disk_that_is_full_in_the_middle_of_a_run_is_told_and_the_run_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from castiron.lightning import checkpoints

    whole, _ = train(load_config("lstm-sentiment", TINY), runs=tmp_path, name="whole")
    real, calls = checkpoints._save, []

    def full(state: Any, file: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(state, file)

    monkeypatch.setattr(checkpoints, "_save", full)
    with pytest.raises(
        RunError, match=r"X819 The file cannot be written: the disk is full\. At .*last\.ckpt"
    ):
        train(load_config("lstm-sentiment", TINY), runs=tmp_path, name="full")
    monkeypatch.undo()
    run = RunDirectory.open("lstm-sentiment/full", tmp_path)
    assert run.summary()["status"] == "failed"
    assert not [p.name for p in run.checkpoints.iterdir() if p.name.startswith(".")]
    resume(run)
    assert all(torch.equal(v, weights(run)[n]) for n, v in weights(whole).items())


def test_two_runs_of_one_name(tmp_path: Path) -> None:
    loaded = load_config("lstm-sentiment", [*TINY, "trainer.max_steps=1"])
    first, _ = train(loaded, runs=tmp_path, name="same")
    before = {p: p.stat().st_mtime_ns for p in first.path.rglob("*")}
    with pytest.raises(RunError, match="X817 There is a run of this name already"):
        train(loaded, runs=tmp_path, name="same")
    assert {p: p.stat().st_mtime_ns for p in first.path.rglob("*")} == before


def test_a_run_that_was_killed_before_its_config_was_written_gives_its_name_back(tmp_path: Path) -> None:
    begun = RunDirectory.create(tmp_path, "lstm-sentiment", "same")
    (begun.path / ".config.yaml.ab12.part").write_text("half")
    shutil.rmtree(begun.checkpoints)
    run, outcome = train(
        load_config("lstm-sentiment", [*TINY, "trainer.max_steps=1"]), runs=tmp_path, name="same"
    )
    assert outcome.status == "completed"
    assert run.path == begun.path
    assert not list(run.path.glob(".config*"))


def test_a_run_that_another_process_has_begun_is_left_alone(tmp_path: Path) -> None:
    other = RunDirectory.create(tmp_path, "lstm-sentiment", "same")
    with other.claimed():
        with pytest.raises(RunError, match="X817 Another process is writing into this run"):
            train(load_config("lstm-sentiment", TINY), runs=tmp_path, name="same")
        assert other.path.is_dir()
