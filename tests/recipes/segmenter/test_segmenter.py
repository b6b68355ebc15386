"""The recipe `segmenter`: drawn shapes, the shapes of its blocks, and its training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from castiron.diagnostics import AuditError, ConfigError
from castiron.training.config_file import load_config
from castiron_recipes.segmenter import Segmenter
from castiron_recipes.segmenter.model import ConvBlock, UNet
from castiron_recipes.segmenter.shapes import CLASSES, ROWS, draw, write


def test_shapes_are_drawn_and_the_same_for_a_seed(tmp_path: Path) -> None:
    files = write(tmp_path / "a", seed=3, size=(16, 24))
    again = write(tmp_path / "b", seed=3, size=(16, 24))
    for split, path in files.items():
        with np.load(path) as found, np.load(again[split]) as other:
            assert found["image"].shape == found["mask"].shape == (ROWS[split], 16, 24)
            assert found["image"].dtype == found["mask"].dtype == np.uint8
            assert (found["image"] == other["image"]).all()
            assert set(np.unique(found["mask"])) == set(range(len(CLASSES)))


def test_shapes_stand_out_from_their_background() -> None:
    image, mask = draw(np.random.default_rng(0), (64, 64), noise=0)
    assert mask.any()
    assert image[mask > 0].min() >= 119
    assert image[mask == 0].max() < 119


def test_a_block_says_what_it_takes() -> None:
    block = ConvBlock(8, 4)
    assert block.contract(1) == "batch 8 height1 width1 -> batch 4 height1 width1"
    assert block(torch.zeros(2, 8, 6, 5)).shape == (2, 4, 6, 5)
    for shape in ((2, 6, 5, 8), (8, 6, 5)):
        with pytest.raises(ValueError, match=r"Expected \[batch, 8 channels, height, width\]\. Received"):
            block(torch.zeros(*shape))


def test_every_level_is_in_the_contract() -> None:
    model = UNet(3, widths=[4, 8, 16], mean=0.5, std=0.2)
    assert model(torch.zeros(2, 12, 8, dtype=torch.uint8)).shape == (2, 3, 12, 8)
    contracts = model.contracts()
    assert set(contracts) == {"", "down.0", "down.1", "down.2", "up.0", "up.1"}
    assert contracts["up.0"] == "batch 12 height0 width0 -> batch 4 height0 width0"


def test_sizes_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"Size is \[30, 32\]; expected multiples of 4"):
        load_config("segmenter", ["model.size=[30, 32]"])


class Swapped(Segmenter):
    """Says that height and width come before the channels."""

    name = "swapped"

    def shapes(self):
        return {"down.0": "batch height width 1 -> batch height width 4"}


def test_a_contract_that_is_broken_stops_the_training_before_its_first_step(tmp_path: Path) -> None:
    from castiron.training.launch import train_recipe

    with pytest.raises(AuditError, match="F340"):
        train_recipe(
            Swapped,
            runs=tmp_path,
            model={"size": [8, 8], "widths": [4, 8]},
            trainer={"max_steps": 1, "threads": 1},
        )
