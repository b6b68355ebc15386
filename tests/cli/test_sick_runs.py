"""Three sick runs, each with one sick layer: what the run leaves behind names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from castiron.health.recorder import read_advice
from castiron.health.table import read

RECIPES = Path(__file__).parent / "sick_recipes.py"
SMALL = (
    "data.batch_size=32",
    "trainer.threads=1",
    "trainer.max_steps=12",
    "trainer.max_epochs=null",
    "health.every=1",
    "guard.response=hold",
)


@pytest.mark.parametrize(
    ("recipe", "policy", "code", "layer"),
    [
        ("NearOverflow", "fp16-mixed", "N522", "blocks.2.up"),
        ("LostUpdates", "{preset: bf16-true, updates: {master: null}}", "N521", "blocks.1.down"),
        ("GrowingState", "float32", "N523", "slow"),
    ],
)
def test_the_sick_layer_is_named(castiron, tmp_path, recipe, policy, code, layer):
    said = castiron("train", f"{RECIPES}:{recipe}", *SMALL, f"precision={policy}", "--name", "a", "--quiet")
    assert said.code == 0, said.err
    assert code in said.err
    (run,) = (tmp_path / "runs").glob("*/a")
    advice = read_advice(run)
    assert {(f.code, f.place.module) for _, f in advice} == {(code, layer)}
    snapshots = read(run)
    assert any(s.full for s in snapshots)
    told = castiron("report", str(run), "--html")
    assert told.code == 0
    page = (run / "report.html").read_text()
    assert code in page
    assert 'class="verdict ill"' in page
    assert f"layer &#x27;{layer}&#x27;" in page
