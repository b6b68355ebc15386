"""Schedulers' signals while nothing trains yet, and as Slurm sends them; a clock that goes backwards."""

from __future__ import annotations

import os
import signal
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from castiron.data import Field, Schema
from castiron.training import Recipe, RunDirectory
from castiron.training import run_directory as directories
from castiron.training.checkpoints import to_resume
from castiron.training.launch import resume, train_recipe
from castiron.training.preemption import Preempted, preemptible


class Line(Recipe):
    """A line through points, which may send its own process a signal."""

    name = "line"
    send: dict[str, int] = {}
    """Where → which signal."""

    class Config(Recipe.Config):
        pass

    def schema(self) -> Schema:
        return Schema.of(
            Field(name="x", role="feature", dtype="float32", shape=(4,)),
            Field(name="y", role="target", dtype="float32"),
        )

    def sent(self, where: str) -> None:
        if where in self.send:
            os.kill(os.getpid(), self.send.pop(where))

    def learn(self, train: Any) -> None:
        self.sent("set-up")

    def save(self, folder: Path) -> None:
        pass

    def load(self, folder: Path) -> None:
        pass

    def model(self) -> Any:
        from torch import nn

        return nn.Sequential(nn.Dropout(0.1), nn.Linear(4, 1))

    def inputs(self, batch: Any) -> tuple[Any, ...]:
        return (batch["x"],)

    def loss(self, outputs: Any, batch: Any) -> Any:
        self.sent("step")
        return (outputs.squeeze(1) - batch["y"]).square().mean()


@pytest.fixture(autouse=True)
def _handlers_come_back() -> Any:
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    Line.send.clear()
    yield
    assert {n: signal.getsignal(n) for n in before} == before


def settings(tmp_path: Path) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(64, 4)).astype(np.float32)
    np.savez(tmp_path / "train.npz", x=x, y=x.sum(1))
    return {
        "runs": tmp_path / "runs",
        "data": {"train": str(tmp_path / "train.npz"), "batch_size": 8},
        "trainer": {"max_epochs": 2, "threads": 1, "log_every": 1},
        "health": {"every": 1000},
        "audit": {"level": "off"},
    }


def weights(run: RunDirectory) -> str:
    from castiron.training.manifest import read_manifest

    manifest = read_manifest(run.checkpoints / "last.ckpt")
    assert manifest is not None
    return manifest.weights


@pytest.mark.parametrize(
    ("number", "status", "code"),
    [
        (signal.SIGTERM, "stopped", 75),
        (signal.SIGUSR1, "stopped", 75),
        (signal.SIGINT, "interrupted", 130),
    ],
)
def test_a_signal_during_set_up_leaves_a_run_that_is_begun_again(
    tmp_path: Path, number: int, status: str, code: int
) -> None:
    Line.send["set-up"] = number
    run, outcome = train_recipe(Line, name="first", **settings(tmp_path))
    assert (outcome.status, outcome.exit_code, outcome.steps) == (status, code, 0)
    if status == "stopped":
        name = signal.Signals(number).name
        assert outcome.message == f"{name} came while no step was under way."
    assert run.summary()["status"] == status
    said: list[str] = []

    class Told:
        def __getattr__(self, name: str) -> Any:
            return lambda *given: said.append(given[0]) if name == "say" else None

    _, outcome = resume(run, reporter=Told())
    assert (outcome.status, outcome.steps) == ("completed", 16)
    assert "The run has no checkpoint yet: it starts from its beginning." in said


def test_slurm_asks_for_the_end_and_the_run_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(tmp_path)
    whole, _ = train_recipe(Line, name="whole", **given)
    for key, value in (
        ("JOB_ID", "17"), ("JOB_NAME", "train"), ("NTASKS", "1"), ("PROCID", "0"), ("LOCALID", "0"),
        ("NODEID", "0"), ("NODELIST", "localhost"), ("JOB_NODELIST", "localhost"), ("NNODES", "1"),
        ("NTASKS_PER_NODE", "1"),
    ):  # fmt: skip
        monkeypatch.setenv(f"SLURM_{key}", value)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        Line.send["step"] = number
        name = signal.Signals(number).name
        run, outcome = train_recipe(Line, name=name, **given)
        assert (outcome.status, outcome.exit_code, outcome.steps) == ("stopped", 75, 1)
        _, outcome = resume(run)
        assert (outcome.status, outcome.steps) == ("completed", 16)
        assert weights(run) == weights(whole)


def send_and_wait() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)


def test_a_second_signal_does_not_disturb_what_the_first_began() -> None:
    with preemptible():
        with pytest.raises(Preempted, match="SIGTERM"):
            send_and_wait()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)


def test_handlers_of_the_program_stay() -> None:
    own = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        with preemptible():
            os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, own)


def test_a_clock_that_goes_backwards_changes_no_name_and_no_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        year_now = 2030

        @classmethod
        def now(cls, tz: Any = None) -> Clock:
            return cls(cls.year_now, 1, 1, tzinfo=tz)

    monkeypatch.setattr(directories, "datetime", Clock)
    given = settings(tmp_path)
    first, _ = train_recipe(Line, **given)
    Clock.year_now = 2020  # the clock was set back
    second, _ = train_recipe(Line, **given)
    third, _ = train_recipe(Line, **given)
    names = [run.path.name for run in (first, second, third)]
    assert names == ["20300101-000000", "20200101-000000", "20200101-000000-2"]
    # The newest checkpoint is the one of most steps, whatever its file's time says.
    os.utime(first.checkpoints / "last.ckpt", (1, 1))
    assert to_resume(first) == first.checkpoints / "last.ckpt"
