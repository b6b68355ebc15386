"""What each recipe does under each preset on a CPU, and the page that says so.

Cells are held against real trainings by `test_presets.py` here, and by `tests/keras/test_keras_presets.py`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from castiron.diagnostics import CastironError
from castiron.policy import PRESETS
from castiron.training.config_file import load_config
from castiron.training.launch import train
from castiron_recipes.lstm_sentiment import recipe as sentiment

TRAINS = ("float64", "float32", "bf16-mixed", "bf16-true", "fp16-mixed", "fp16-true")
REFUSED = {"tf32": "H701", "float8-mixed": "H701"}
"""Preset → the finding that says why not. The same in both wings."""

FEW = (
    "trainer.max_steps=2",
    "trainer.limit_validation=1",
    "trainer.limit_test=1",
    "trainer.threads=1",
    "trainer.device=cpu",
    "trainer.log_every=1",
)
SMALL = {
    "lstm-sentiment": (
        "model.embedding=8", "model.hidden=8", "model.text.max_vocabulary=200", "data.batch_size=16",
    ),
    "image-classifier": ("model.widths=[4,8]", "data.batch_size=32"),
    "series-forecaster": ("model.past=12", "model.horizon=3", "data.batch_size=16"),
    "segmenter": ("model.size=[8,8]", "model.widths=[4,8]", "data.batch_size=4"),
    "tabular": ("model.hidden=[8]",),
    "char-lm": (
        "model.context=16", "model.stride=16", "model.width=16", "model.layers=1", "model.heads=2",
    ),
    "seq2seq-attention": ("model.embedding=8", "model.hidden=8", "data.batch_size=16"),
    "deep-relu": ("model.depth=4", "model.width=16"),
    "matrix-product": ("model.lengths=[4,16]", "model.columns=8"),
}  # fmt: skip
"""Recipe → what makes it small."""
BOTH = ("lstm-sentiment", "image-classifier", "series-forecaster", "segmenter", "tabular")
"""Those that train in TensorFlow, too."""


def trains(recipe: str, preset: str, folder: Path, *more: str) -> None:
    """Hold a cell that says so against a training of two steps."""
    config = load_config(recipe, [*FEW, *SMALL[recipe], f"precision={preset}", *more])
    run, outcome = train(config, runs=folder, name="run")
    assert (outcome.status, outcome.steps) == ("completed", 2)
    losses = [row["train/loss"] for row in run.metrics() if "train/loss" in row]
    assert losses
    assert all(map(math.isfinite, [*losses, *outcome.metrics["test"].values()]))


def is_refused(recipe: str, preset: str, folder: Path, *more: str) -> None:
    """Hold a cell with a code against what is said when one tries."""
    config = load_config(recipe, [*FEW, *SMALL[recipe], f"precision={preset}", *more])
    with pytest.raises(CastironError) as refused:
        train(config, runs=folder, name="run")
    assert {f.code for f in refused.value.findings} == {REFUSED[preset]}
    for finding in refused.value.findings:
        assert finding.place.module is not None, "the layer is named"
        assert "Nearest that works" in finding.remedy


@contextlib.contextmanager
def few_reviews() -> Iterator[None]:
    """Two hundred generated reviews, not 20,000."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentiment, "generate", partial(sentiment.generate, rows=200))
        yield


def page() -> str:
    """docs/presets.md."""
    lines = [HEAD, f"| recipe | wing | {' | '.join(f'`{p}`' for p in PRESETS)} |"]
    lines.append("|---|---|" + "---|" * len(PRESETS))
    for recipe in SMALL:
        for wing in ("PyTorch", "TensorFlow")[: 1 + (recipe in BOTH)]:
            cells = ("trains" if p in TRAINS else f"[{REFUSED[p]}](rules/{REFUSED[p]}.md)" for p in PRESETS)
            lines.append(f"| `{recipe}` | {wing} | {' | '.join(cells)} |")
    return "\n".join(lines) + FOOT


HEAD = """# Recipes under every preset

Each cell is a real training of a few steps of a small form of the recipe, on the CPU, in the tests
(`tests/recipes/test_presets.py`, `tests/keras/test_keras_presets.py`); written by
`python scripts/presets_page.py`. A code in place of *trains* is the finding with which castiron refuses,
before it trains anything.
"""
FOOT = """

- `tf32` is a mode of NVIDIA's tensor cores, and `float8-mixed` needs products with scales that castiron does
  not drive ([float8](howto/float8.md)): the finding names the layers, the reason, and the nearest preset that
  works.
- Under `fp16-mixed` and `fp16-true` the loss is scaled. A step whose gradients overflow while the scale
  calibrates is held, and does not count.
- Recipes without a row for TensorFlow are written in PyTorch alone; `backend: tensorflow` is refused with
  [X814](rules/X814.md).
- 16 bits run by emulation on a CPU without such instructions. That a preset trains says nothing about its
  speed: that is what `castiron doctor` measures.
"""
