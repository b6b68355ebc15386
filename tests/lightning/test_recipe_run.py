"""A recipe trained from beginning to end: its files, its numbers twice, stopped and resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from castiron.diagnostics import ConfigError, DataError, HardwareError, ManifestError, RunError
from castiron.lightning.checkpoints import _save as save
from castiron.training import RunDirectory, load_config
from castiron.training.backend import Job, Outcome, load_backend
from castiron.training.launch import resume, train
from castiron.training.writing import written

TINY = (
    "data.batch_size=32",
    "model.embedding=8",
    "model.hidden=8",
    "model.text.max_vocabulary=200",
    "trainer.limit_train=6",
    "trainer.limit_validation=2",
    "trainer.limit_test=2",
    "trainer.max_epochs=2",
    "trainer.log_every=1",
    "trainer.threads=1",
)


def fit(runs: Path, *overrides: str, name: str = "run") -> tuple[RunDirectory, Outcome]:
    return train(load_config("lstm-sentiment", [*TINY, *overrides]), runs=runs, name=name)


def rows(run: RunDirectory) -> list[dict[str, Any]]:
    """What was logged, without the clock."""
    return [{k: v for k, v in row.items() if k != "items_per_s"} for row in run.metrics()]


def test_a_run_leaves_everything_that_is_needed_to_read_and_repeat_it(tmp_path: Path) -> None:
    run, outcome = fit(tmp_path)
    assert (outcome.status, outcome.steps) == ("completed", 12)
    assert set(outcome.metrics) == {"train", "validation", "test"}
    assert set(outcome.metrics["test"]) == {"loss", "accuracy", "f1"}
    files = {p.name for p in run.path.iterdir()}
    assert {
        "config.yaml", "plan.json", "data.json", "environment.json", "metrics.jsonl", "summary.json",
    } <= files  # fmt: skip
    assert {p.name for p in run.checkpoints.iterdir()} == {"best.ckpt", "last.ckpt", "last-2.ckpt"}
    data = json.loads((run.path / "data.json").read_text())
    assert data["train"]["dropped"] > 0
    events = EventAccumulator(str(run.path))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"Training/loss/train", "Training/accuracy/validation", "Training/learning rate"} <= scalars
    texts = {tag.removesuffix("/text_summary") for tag in events.Tags()["tensors"]}
    assert {"Precision/policy", "Precision/plan", "Precision/census", "Training/data/train"} <= texts


def test_the_resolved_config_runs_again_to_the_same_losses(tmp_path: Path) -> None:
    first, _ = fit(tmp_path)
    again, _ = train(load_config(first.path / "config.yaml"), runs=tmp_path, name="again")
    assert rows(first) == rows(again)


def test_another_seed_gives_other_losses(tmp_path: Path) -> None:
    first, _ = fit(tmp_path)
    other, _ = fit(tmp_path, "seed=18", name="other")
    assert rows(first) != rows(other)


EMA = ("trainer.ema=0.9", "trainer.accumulate=2", "optimizer.schedule=cosine", "model.layers=2")


class StopAfter:
    """A reporter that asks the process to stop once so many steps are logged."""

    verbosity = "quiet"

    def __init__(self, step: int) -> None:
        self._step = step

    def update(self, progress: Any) -> None:
        if progress.step == self._step:
            self._step = -1
            os.kill(os.getpid(), signal.SIGTERM)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *a, **k: None


@pytest.mark.parametrize("more", [(), EMA, ("precision=bf16-true",)], ids=["plain", "ema", "bf16-true"])
@pytest.mark.parametrize("epoch_part", [0.5, 1.0, 1.5])
def test_a_stopped_run_resumes_to_the_same_numbers(
    more: tuple[str, ...], epoch_part: float, tmp_path: Path
) -> None:
    whole, outcome = fit(tmp_path, *more, name="whole")
    loaded = load_config("lstm-sentiment", [*TINY, *more])
    stop = StopAfter(int(outcome.steps / 2 * epoch_part))
    run, stopped = train(loaded, runs=tmp_path, name="stopped", reporter=stop)  # type: ignore[arg-type]
    assert stopped.status == "stopped"
    assert stopped.exit_code == 75
    assert stopped.steps < outcome.steps
    _, resumed = resume(run)
    assert resumed.status == "completed"
    assert rows(run) == rows(whole)
    assert resumed.metrics["test"] == outcome.metrics["test"]
    states = [torch.load(r.checkpoint("last"), weights_only=True)["state_dict"] for r in (run, whole)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


class Watch(StopAfter):
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def update(self, progress: Any) -> None:
        self.seen.append(progress)


def test_progress_shows_validation_metrics_and_never_those_of_the_test(tmp_path: Path) -> None:
    watch = Watch()
    _, outcome = train(load_config("lstm-sentiment", TINY), runs=tmp_path, name="run", reporter=watch)  # type: ignore[arg-type]
    losses = [p.metrics["loss"] for p in watch.seen if p.metrics]
    assert outcome.metrics["validation"]["loss"] in losses
    assert outcome.metrics["test"]["loss"] not in losses


@pytest.mark.filterwarnings("ignore")  # what torch says of its own compiler
@pytest.mark.skipif(
    shutil.which("c++") is None, reason="torch.compile needs a C++ compiler, and there is none"
)
def test_a_compiled_model_learns_what_the_eager_one_learns(tmp_path: Path) -> None:
    still = ("model.dropout=0", "model.embedding_dropout=0", "model.word_dropout=0")
    eager, _ = fit(tmp_path, *still)
    compiled, _ = fit(tmp_path, *still, "trainer.compile=true", name="compiled")
    pairs = zip(rows(eager), rows(compiled), strict=True)
    assert all(
        a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-4) for a, b in pairs if "train/loss" in a
    )


def test_ctrl_c_leaves_a_resumable_run_and_says_how(tmp_path: Path, reviews: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "castiron", "train", "lstm-sentiment", *TINY, "trainer.max_epochs=500"]
    process = subprocess.Popen(
        [*command, *reviews, "--runs", str(tmp_path), "--name", "x"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    log = tmp_path / "lstm-sentiment" / "x" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) > 8):
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert f"castiron train --resume {tmp_path}/lstm-sentiment/x" in said
    run = RunDirectory.open("lstm-sentiment/x", tmp_path)
    assert run.summary()["status"] == "interrupted"
    steps = run.summary()["steps"]
    _, outcome = resume(run, [f"trainer.max_steps={steps + 2}"])
    assert (outcome.status, outcome.steps) == ("completed", steps + 2)


def test_evaluating_gives_the_figures_of_the_summary(tmp_path: Path) -> None:
    run, outcome = fit(tmp_path, "trainer.limit_test=null", "trainer.limit_validation=null")
    loaded = load_config(run.path / "config.yaml")
    job = Job(config=loaded.config, recipe=loaded.recipe, run=run, checkpoint=run.checkpoint("best"))
    found = load_backend("torch").evaluate(job, ("validation", "test"))
    assert found["test"] == pytest.approx(outcome.metrics["test"], abs=1e-6)
    assert found["validation"] == pytest.approx(outcome.metrics["validation"], abs=1e-6)


def test_predictions_come_in_the_order_of_the_inputs(tmp_path: Path) -> None:
    run, _ = fit(tmp_path)
    loaded = load_config(run.path / "config.yaml")
    job = Job(config=loaded.config, recipe=loaded.recipe, run=run, checkpoint=run.checkpoint("best"))
    texts = ["good", "a very long text about a film that is not good at all but wonderful", "", "bad film"]
    backend = load_backend("torch")
    together = backend.predict(job, texts)
    alone = [backend.predict(job, [text])[0] for text in texts]
    assert [a["label"] for a in together] == [a["label"] for a in alone]
    assert [a["probability"] for a in together] == pytest.approx([a["probability"] for a in alone], abs=1e-5)
    assert backend.predict(job, [{"text": "good"}])[0] == pytest.approx(together[0])
    with pytest.raises(DataError, match=r"inputs\.jsonl"):
        backend.predict(job, [{"words": "good"}])


def test_training_stops_early_when_the_metric_improves_no_more(tmp_path: Path) -> None:
    _, outcome = fit(tmp_path, "trainer.max_epochs=9", "trainer.early_stopping={patience: 2, min_delta: 0.9}")
    assert outcome.status == "completed"
    assert outcome.steps == 18
    assert outcome.message.startswith("Stopped early: accuracy stayed at")


@pytest.mark.parametrize("end", ["trainer.max_steps=5", "trainer.max_steps=8"])
def test_max_steps_ends_training_within_an_epoch_or_beyond_one(end: str, tmp_path: Path) -> None:
    run, outcome = fit(tmp_path, end, "trainer.max_epochs=null")
    assert outcome.steps == int(end.partition("=")[2])
    assert run.checkpoint("last").exists()
    assert "test" in outcome.metrics


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    run, _ = fit(tmp_path)
    best = run.checkpoint("best")
    best.write_bytes(best.read_bytes()[:2000])
    loaded = load_config(run.path / "config.yaml")
    job = Job(config=loaded.config, recipe=loaded.recipe, run=run, checkpoint=best)
    with pytest.raises(
        ManifestError, match=r"C601 The checkpoint cannot be used: it ends in the middle\. At .*best\.ckpt"
    ):
        load_backend("torch").evaluate(job)


def test_a_checkpoint_with_code_is_not_run(tmp_path: Path) -> None:
    run, _ = fit(tmp_path)
    torch.save({"state_dict": Evil(tmp_path / "pwned")}, run.checkpoint("best"))
    loaded = load_config(run.path / "config.yaml")
    job = Job(config=loaded.config, recipe=loaded.recipe, run=run, checkpoint=run.checkpoint("best"))
    with pytest.raises(
        ManifestError,
        match=r"C617 The file asks its reader to run code, and was not loaded\. Expected "
        r"tensors, numbers, text\. Received posix\.system",
    ):
        load_backend("torch").evaluate(job)
    assert not (tmp_path / "pwned").exists()


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_a_refused_policy_leaves_no_run_behind(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="use precision: float32"):
        fit(tmp_path, "precision=tf32")
    with pytest.raises(ConfigError, match="matches nothing"):
        fit(tmp_path, "precision={preset: float32, layers: {heat: {compute: float32}}}")
    assert not list((tmp_path / "lstm-sentiment").glob("*/plan.json"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, the device that is always full")
def test_a_full_disk_is_told_as_one(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    with pytest.raises(RunError) as error, written(path), open("/dev/full", "wb", buffering=0) as file:
        save({"weights": torch.zeros(1_000_000)}, file)
    assert str(error.value) == (
        f"X819 The file cannot be written: the disk is full. At {path}. "
        "Make room, or choose another folder with --runs."
    )
