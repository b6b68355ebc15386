"""The loop that leaves out what nobody listens to: Lightning's results, and its hooks for those who do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from castiron.lightning import loop, run
from castiron.lightning.loaders import TorchLoader
from castiron.lightning.loop import StepLoop
from castiron.lightning.module import RecipeModule
from castiron.lightning.quiet import quiet_lightning
from castiron.training import RunDirectory, load_config
from castiron.training.backend import Job
from castiron.training.launch import train
from castiron.training.preparation import prepare

TINY = (
    "data.batch_size=32",
    "model.embedding=8",
    "model.hidden=8",
    "model.text.max_vocabulary=200",
    "trainer.limit_train=7",
    "trainer.limit_validation=2",
    "trainer.limit_test=2",
    "trainer.max_epochs=2",
    "trainer.log_every=1",
    "trainer.threads=1",
    "optimizer.schedule=cosine",
)


def logged(runs: Path, name: str, *overrides: str) -> list[dict[str, Any]]:
    directory, _ = train(load_config("lstm-sentiment", [*TINY, *overrides]), runs=runs, name=name)
    return [{k: v for k, v in row.items() if k != "items_per_s"} for row in directory.metrics()]


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("trainer.accumulate=3",),
        ("precision=bf16-mixed", "trainer.ema=0.9"),
        ("trainer.validate_every=3",),
    ],
    ids=["plain", "accumulated", "bf16-mixed with ema", "validated within the epoch"],
)
def test_a_run_has_the_losses_and_counters_that_lightnings_own_loop_gives(
    more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lean = logged(tmp_path, "lean", *more)
    monkeypatch.setattr(run, "use_step_loop", lambda trainer: None)
    assert logged(tmp_path, "lightning", *more) == lean


class Listener(pl.Callback):
    """Notes the hooks of a step in the order in which they come."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.heard.append("batch start")

    def on_before_zero_grad(self, *arguments: Any) -> None:
        self.heard.append("before zero_grad")

    def on_before_backward(self, *arguments: Any) -> None:
        self.heard.append("before backward")

    def on_after_backward(self, *arguments: Any) -> None:
        self.heard.append("after backward")

    def on_before_optimizer_step(self, *arguments: Any) -> None:
        self.heard.append("before optimizer step")

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        assert isinstance(outputs["loss"], torch.Tensor)
        self.heard.append("batch end")


def listen(folder: Path, *overrides: str, module: type[RecipeModule] = RecipeModule) -> tuple[Listener, bool]:
    """What a callback hears of a training of few steps, and whether the lean loop ran it."""
    loaded = load_config("lstm-sentiment", [*TINY, "trainer.max_epochs=1", *overrides])
    job = Job(config=loaded.config, recipe=loaded.recipe, run=RunDirectory.create(folder, "heard"))
    prepared = prepare(job)
    listener = Listener()
    with quiet_lightning():
        trainer = run.make_trainer(job, [listener])
        loader = TorchLoader(prepared.batches["train"], 7)
        trainer.fit(module(prepared.recipe, loaded.config.precision, 7), loader)
    assert isinstance(trainer.fit_loop.epoch_loop, StepLoop)
    return listener, trainer.fit_loop.epoch_loop._lean


def test_callbacks_hear_the_hooks_of_a_step_in_lightnings_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lean, is_lean = listen(tmp_path, "trainer.accumulate=2")
    assert is_lean
    monkeypatch.setattr(loop, "serves", lambda trainer: False)
    own, is_lean = listen(tmp_path / "own", "trainer.accumulate=2")
    assert not is_lean
    assert lean.heard == own.heard
    assert len(lean.heard) == 7 * 4 + 4 + 4


class WithHook(RecipeModule):
    """A module that listens itself."""

    def on_after_backward(self) -> None:
        pass


def test_a_module_with_hooks_of_its_own_is_trained_by_lightnings_steps(tmp_path: Path) -> None:
    _, is_lean = listen(tmp_path, module=WithHook)
    assert not is_lean
