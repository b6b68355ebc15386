"""Every recipe that trains in TensorFlow under every preset: the rows of docs/presets.md for that wing."""

from __future__ import annotations

import math
import sys
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

from preset_table import BOTH, FEW, REFUSED, SMALL, TRAINS

from castiron.diagnostics import CastironError
from castiron.training.config_file import load_config
from castiron.training.launch import train
from castiron_recipes.lstm_sentiment import recipe as sentiment


@pytest.fixture(autouse=True)
def few_reviews(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentiment, "generate", partial(sentiment.generate, rows=200))


# `test_keras_recipes.py` trains the other cells, in both wings.
CELLS = [(r, p) for r in BOTH for p in TRAINS if r == "lstm-sentiment" or p not in ("float32", "bf16-mixed")]


@pytest.mark.parametrize(("recipe", "preset"), CELLS)
def test_it_trains(recipe: str, preset: str, tmp_path: Path) -> None:
    config = load_config(recipe, [*FEW, *SMALL[recipe], f"precision={preset}", "backend=tensorflow"])
    run, outcome = train(config, runs=tmp_path, name="run")
    assert (outcome.status, outcome.steps) == ("completed", 2)
    losses = [row["train/loss"] for row in run.metrics() if "train/loss" in row]
    assert losses
    assert all(map(math.isfinite, [*losses, *outcome.metrics["test"].values()]))


@pytest.mark.parametrize("preset", REFUSED)
@pytest.mark.parametrize("recipe", BOTH)
def test_it_says_why_not(recipe: str, preset: str, tmp_path: Path) -> None:
    config = load_config(recipe, [*FEW, *SMALL[recipe], f"precision={preset}", "backend=tensorflow"])
    with pytest.raises(CastironError) as refused:
        train(config, runs=tmp_path, name="run")
    assert {f.code for f in refused.value.findings} == {REFUSED[preset]}
    for finding in refused.value.findings:
        assert finding.place.module is not None, "the layer is named"
        assert "Nearest that works" in finding.remedy
