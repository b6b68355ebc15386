"""Every recipe that trains in TensorFlow under every preset: the rows of docs/presets.md for that wing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

from preset_table import BOTH, REFUSED, TRAINS, few_reviews, is_refused, trains


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with few_reviews():
        yield


# `test_keras_recipes.py` trains the other cells, `test_keras_recipe_run.py` the LSTM's in float32.
CELLS = [(r, p) for r in BOTH for p in TRAINS if p not in ("float32", "bf16-mixed")] + [
    ("lstm-sentiment", "bf16-mixed")
]
TENSORFLOW = ("backend=tensorflow", "health.every=1")
# An average of the weights and steps of two batches need their own tensors in every format.
MORE = {"lstm-sentiment": ("trainer.accumulate=2", "trainer.ema=0.9")}


@pytest.mark.usefixtures("one_graph")
@pytest.mark.parametrize(("recipe", "preset"), CELLS)
def test_it_trains(recipe: str, preset: str, tmp_path: Path) -> None:
    trains(recipe, preset, tmp_path, *TENSORFLOW, *MORE.get(recipe, ()))


@pytest.mark.parametrize("preset", REFUSED)
@pytest.mark.parametrize("recipe", BOTH)
def test_it_says_why_not(recipe: str, preset: str, tmp_path: Path) -> None:
    is_refused(recipe, preset, tmp_path, "backend=tensorflow")
