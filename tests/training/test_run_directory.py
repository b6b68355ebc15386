"""The run directory: never overwritten, files whole or not at all, every failure one message."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from castiron.diagnostics import RunError
from castiron.training import run_directory
from castiron.training.backend import Outcome
from castiron.training.config import RunConfig
from castiron.training.run_directory import RunDirectory, all_runs, latest


def made(runs: Path, recipe: str = "tiny", name: str | None = "first") -> RunDirectory:
    run = RunDirectory.create(runs, recipe, name)
    run.write_config(RunConfig(recipe=recipe))
    return run


def said(action) -> str:
    with pytest.raises(RunError) as error:
        action()
    assert error.value.exit_code == 2
    (found,) = error.value.findings
    return str(found)


def test_a_name_is_never_taken_twice(tmp_path):
    made(tmp_path)
    assert said(lambda: made(tmp_path)) == (
        f"X817 There is a run of this name already. At {tmp_path}/tiny/first. Choose another --name, "
        "or continue it: castiron train tiny --resume tiny/first"
    )


def test_runs_without_a_name_get_the_time_and_never_the_same_folder(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: RunDirectory.create(tmp_path, "tiny"), range(24)))
    assert len({run.path for run in runs}) == 24
    assert all(run.path.name[:8].isdigit() for run in runs)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "x" * 101, "-dash", "a\nb"])
def test_names_that_no_folder_can_have(tmp_path, name):
    assert said(lambda: RunDirectory.create(tmp_path, "tiny", name)).startswith(
        "X820 The run's name cannot be that of a folder. Expected letters, digits, '.', '_', '-', '+' or '='"
    )
    assert not list(tmp_path.iterdir())


def test_runs_are_found_by_path_by_name_and_by_recipe(tmp_path):
    first, second = made(tmp_path), made(tmp_path, name="second")
    os.utime(first.path / "config.yaml", (1, 1))
    assert RunDirectory.open(first.path, tmp_path).path == first.path
    assert RunDirectory.open(first.path / "config.yaml", tmp_path).path == first.path
    assert RunDirectory.open("tiny/first", tmp_path).path == first.path
    assert RunDirectory.open("tiny", tmp_path).path == second.path
    assert latest(tmp_path / "tiny").path == second.path
    assert [r.name for r in all_runs(tmp_path)] == ["tiny/first", "tiny/second"]


def test_runs_that_are_not_there(tmp_path):
    made(tmp_path)
    assert said(lambda: RunDirectory.open("tiny/frist", tmp_path)) == (
        f"X818 There is no such run. Expected a run's folder, or <recipe>/<name> below '{tmp_path}'. "
        "Received 'tiny/frist'. Did you mean 'tiny/first'?"
    )
    assert said(lambda: RunDirectory.open("qqqqqqqq", tmp_path)).endswith("The latest runs are tiny/first.")
    (tmp_path / "empty").mkdir()
    assert said(lambda: RunDirectory.open(tmp_path / "empty", tmp_path)) == (
        f"X818 This folder is no run: 'config.yaml' is missing. At {tmp_path}/empty. "
        "Give the run's folder, or <recipe>/<name> below --runs."
    )


def test_a_run_is_found_by_its_name_alone_where_only_one_recipe_has_it(tmp_path: Path) -> None:
    for recipe, name in (("a", "first"), ("b", "first"), ("b", "second")):
        run = RunDirectory.create(tmp_path, recipe, name)
        (run.path / "config.yaml").write_text("recipe: x\n")
    assert RunDirectory.open("second", tmp_path).name == "b/second"
    assert RunDirectory.open("b/first", tmp_path).name == "b/first"
    with pytest.raises(RunError, match="Several recipes have a run of this name: a/first, b/first"):
        RunDirectory.open("first", tmp_path)


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    run = made(tmp_path)
    run.write_json("plan.json", {"a": 1})

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert said(lambda: run.write_json("plan.json", {"a": 2})) == (
        f"X819 The file cannot be written: the disk is full. At {run.path}/plan.json. "
        "Make room, or choose another folder with --runs."
    )
    assert run.read_json("plan.json") == {"a": 1}
    assert sorted(p.name for p in run.path.iterdir()) == ["checkpoints", "config.yaml", "plan.json"]


def test_a_full_disk_leaves_whole_rows(tmp_path):
    """A limit on the size of files, in a process of its own: the system writes a part, then refuses."""
    run = made(tmp_path)
    code = (
        "import resource, signal, sys; from pathlib import Path; from castiron.training import RunDirectory\n"
        "from castiron.diagnostics import RunError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); run = RunDirectory(Path(sys.argv[1]))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))\n"
        "try:\n    for step in range(9): run.log_metrics({'step': step, 'loss': 0.123456789})\n"
        "except RunError as e: print(e)\n"
        "run.close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("X819 The file cannot be written: File too large. At ")
    content = (run.path / "metrics.jsonl").read_bytes()
    assert content.endswith(b"}\n")
    assert [row["step"] for row in run.metrics()] == [0, 1, 2]


def test_rows_of_a_file_that_was_removed_are_not_lost_silently(tmp_path):
    run = made(tmp_path)
    run.log_metrics({"step": 1})
    (run.path / "metrics.jsonl").unlink()
    assert said(lambda: run.log_metrics({"step": 2})).startswith("X819 The file cannot be written: ")
    run.close()


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "permission is denied"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_reasons_of_the_file_system(tmp_path, monkeypatch, number, reason):
    def fails(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", fails)
    assert f"The file cannot be written: {reason}." in said(lambda: RunDirectory.create(tmp_path, "tiny"))


def test_a_file_where_the_runs_should_be(tmp_path):
    (tmp_path / "runs").write_text("a file")
    message = said(lambda: RunDirectory.create(tmp_path / "runs", "tiny"))
    assert message.startswith("X819 The file cannot be written: a part of the path is a file.")
    (tmp_path / "tiny").write_text("a file")
    assert said(lambda: RunDirectory.create(tmp_path, "tiny")).startswith("X819 A file stands where a folder")


def test_json_has_no_nan(tmp_path):
    run = made(tmp_path)
    run.write_json("a.json", {"x": math.nan, "y": [math.inf, 1.5], "z": Path("p")})
    assert json.loads((run.path / "a.json").read_text()) == {"x": None, "y": [None, 1.5], "z": "p"}


def test_a_damaged_file_is_named(tmp_path):
    run = made(tmp_path)
    (run.path / "summary.json").write_text('{"status": "comp')
    assert said(run.summary).startswith("X822 The file cannot be read: Unterminated string")
    assert said(lambda: run.read_json("plan.json")).startswith("X818 The run has no 'plan.json'.")


def test_metrics_are_there_at_once_and_a_torn_last_line_is_passed_over(tmp_path):
    run = made(tmp_path)
    assert run.metrics() == []
    run.log_metrics({"step": 1, "train/loss": 0.5})
    run.log_metrics({"step": 2, "train/loss": math.nan})
    assert run.metrics() == [{"step": 1, "train/loss": 0.5}, {"step": 2, "train/loss": None}]
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "tra')
    assert len(run.metrics()) == 2
    run.trim_metrics(1)
    run.log_metrics({"step": 2, "train/loss": 0.25})
    run.close()
    assert run.metrics() == [{"step": 1, "train/loss": 0.5}, {"step": 2, "train/loss": 0.25}]


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    run = made(tmp_path)
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n{"step\n{"step": 3}\n')
    assert said(run.metrics).startswith(f"X822 The line is not JSON. At {run.path}/metrics.jsonl:2.")


def test_checkpoints_by_what_they_are_for(tmp_path):
    run = made(tmp_path)
    assert said(run.checkpoint).startswith("X818 The run has no checkpoint.")
    (run.checkpoints / "last.ckpt").touch()
    assert run.checkpoint("best").name == "last.ckpt"
    (run.checkpoints / "best.ckpt").touch()
    assert run.checkpoint("best").name == "best.ckpt"
    assert run.checkpoint("last").name == "last.ckpt"


def test_the_summary_of_an_outcome(tmp_path, read_json):
    run = made(tmp_path)
    assert run.summary() == {"status": "running"}
    outcome = Outcome(
        status="completed",
        steps=7,
        held_steps=1,
        metrics={"test": {"accuracy": 0.5}},
        duration_s=2.5,
        items_per_s=100.0,
        checkpoint=run.checkpoints / "best.ckpt",
    )
    run.write_summary(outcome, RunConfig.model_validate({"recipe": "tiny", "precision": "bf16-mixed"}))
    summary = read_json(run.path / "summary.json")
    assert {
        k: summary[k] for k in ("status", "steps", "held_steps", "incidents", "metrics", "duration_s")
    } == {
        "status": "completed",
        "steps": 7,
        "held_steps": 1,
        "incidents": 0,
        "metrics": {"test": {"accuracy": 0.5}},
        "duration_s": 2.5,
    }
    assert summary["policy"] == "p=float32,c=bfloat16,o=bfloat16"
    assert summary["items_per_s"] == 100.0


def test_one_process_writes_into_a_run(tmp_path):
    run = made(tmp_path)
    with run.claimed():

        def second() -> None:
            with RunDirectory(run.path).claimed():
                pass

        assert said(second).startswith("X817 Another process is writing into this run.")
    with run.claimed():
        pass


def test_a_run_that_trained_nothing_can_be_discarded(tmp_path):
    run = made(tmp_path)
    assert run.discard_if_unused()
    assert not run.path.exists()
    run = made(tmp_path)
    run.log_metrics({"step": 1})
    assert not run.discard_if_unused()
    run.close()


def test_the_names_of_the_files_are_those_people_rely_on():
    assert (run_directory.CONFIG, run_directory.PLAN, run_directory.DATA, run_directory.METRICS) == (
        "config.yaml",
        "plan.json",
        "data.json",
        "metrics.jsonl",
    )
    assert (run_directory.SUMMARY, run_directory.ENVIRONMENT, run_directory.CHECKPOINTS) == (
        "summary.json",
        "environment.json",
        "checkpoints",
    )


def test_what_a_resumed_run_writes_again_is_dropped(tmp_path):
    run = made(tmp_path)
    for row in ({"step": 1}, {"step": 2, "validation/loss": 1.0}, {"step": 2, "test/loss": 1.0}, {"step": 3}):
        run.log_metrics(row)
    run.trim_metrics(2)
    assert run.metrics() == [{"step": 1}, {"step": 2, "validation/loss": 1.0}]
