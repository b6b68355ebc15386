"""What tests of recipes share: a few steps of training."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from castiron.training import RunDirectory
from castiron.training.backend import Outcome
from castiron.training.config_file import load_config
from castiron.training.launch import train

FEW = (
    "trainer.max_steps=4",
    "trainer.limit_validation=1",
    "trainer.limit_test=1",
    "trainer.threads=1",
    "trainer.device=cpu",
    "trainer.log_every=1",
)


@pytest.fixture
def few_steps(tmp_path: Path) -> Callable[..., tuple[RunDirectory, Outcome]]:
    """`few_steps("tabular", "precision=float64")` trains four steps, and demands finite losses."""

    def run(config: str, *overrides: str) -> tuple[RunDirectory, Outcome]:
        run, outcome = train(load_config(config, [*FEW, *overrides]), runs=tmp_path, name="run")
        assert (outcome.status, outcome.steps) == ("completed", 4)
        losses = [row["train/loss"] for row in run.metrics() if "train/loss" in row]
        assert losses
        assert all(map(math.isfinite, losses))
        assert all(map(math.isfinite, outcome.metrics["test"].values()))
        return run, outcome

    return run
