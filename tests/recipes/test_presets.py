"""Every recipe under every preset: it trains, or says why not. The page that says so is this table."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from preset_table import BOTH, FEW, REFUSED, SMALL, TRAINS, few_reviews, is_refused, page, trains

from castiron.diagnostics import CastironError
from castiron.policy import PRESETS
from castiron.training.config_file import load_config
from castiron.training.registry import find_recipe, registered

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with few_reviews():
        yield


@pytest.mark.parametrize("preset", TRAINS)
@pytest.mark.parametrize("recipe", SMALL)
def test_it_trains(recipe: str, preset: str, tmp_path: Path) -> None:
    trains(recipe, preset, tmp_path)


@pytest.mark.parametrize("preset", REFUSED)
@pytest.mark.parametrize("recipe", SMALL)
def test_it_says_why_not(recipe: str, preset: str, tmp_path: Path) -> None:
    is_refused(recipe, preset, tmp_path)


@pytest.mark.parametrize("recipe", sorted(set(SMALL) - set(BOTH)))
def test_what_is_written_in_pytorch_alone_says_so(recipe: str) -> None:
    with pytest.raises(CastironError) as refused:
        load_config(recipe, [*FEW, "backend=tensorflow"])
    assert [f.code for f in refused.value.findings] == ["X814"]


def test_the_page_is_the_table() -> None:
    assert set(TRAINS) | set(REFUSED) == set(PRESETS)
    assert (DOCS / "presets.md").read_text(encoding="utf-8") == page(), "run: python scripts/presets_page.py"
    known = {name: find_recipe(name) for name in registered()}
    assert set(known) == set(SMALL), "a recipe without a row"
    assert {name for name, recipe in known.items() if "tensorflow" in recipe.backends} == set(BOTH)
