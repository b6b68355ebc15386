"""The recipe `image-classifier`: packaged digits, pixels, augmentation, and its training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from castiron_recipes.image_classifier.digits import write
from castiron_recipes.image_classifier.model import Augment, Block, Pixels, ResNet


def test_digits_are_packaged_and_the_same_for_a_seed(tmp_path: Path) -> None:
    files = write(tmp_path / "a", seed=3)
    again = write(tmp_path / "b", seed=3)
    sizes = {}
    for split, path in files.items():
        with np.load(path) as found, np.load(again[split]) as other:
            assert found["image"].dtype == found["label"].dtype == np.uint8
            assert found["image"].shape[1:] == (8, 8)
            assert (found["image"] == other["image"]).all()
            assert set(found["label"]) == set(range(10))
            sizes[split] = len(found["label"])
            assert found["image"].max() == 255
    assert sizes == {"train": 1297, "validation": 200, "test": 300}


def test_pixels_become_numbers_of_the_buffers_format() -> None:
    layer = Pixels(0.25, 0.5)
    x = layer(torch.tensor([[[0, 255]]], dtype=torch.uint8))
    assert x.shape == (1, 1, 1, 2)
    assert x.flatten().tolist() == [-0.5, 1.5]
    assert layer.to(torch.float64)(torch.zeros(1, 2, 2, dtype=torch.uint8)).dtype is torch.float64


def test_augmentation_only_moves_mirrors_and_erases_and_only_while_training() -> None:
    torch.manual_seed(0)
    x = torch.zeros(200, 1, 7, 7)
    x[:, 0, 3, 3] = 1
    layer = Augment(2, flip=True, erase=0)
    moved = layer(x)
    assert (moved.sum((1, 2, 3)) == 1).all()
    places = {tuple(p[1:].tolist()) for p in moved[:, 0].nonzero()}
    assert {p[0] for p in places} == {p[1] for p in places} == {1, 2, 3, 4, 5}
    erased = Augment(0, flip=False, erase=3)(torch.ones(200, 1, 7, 7))
    holes = (erased == 0).sum((1, 2, 3))
    assert holes.max() == 9
    assert holes.min() == 0
    assert layer.eval()(x) is x


def test_a_block_begins_as_its_shortcut() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 4, 6, 6)
    torch.testing.assert_close(Block(4, 4, stride=1)(x), x)
    assert Block(4, 8, stride=2)(x).shape == (2, 8, 3, 3)


def test_the_logits_of_an_image_do_not_depend_on_the_others_once_trained() -> None:
    torch.manual_seed(0)
    model = ResNet(
        3, widths=[4, 8], blocks=2, stride=1, mean=0.3, std=0.4, shift=1, flip=True, erase=2, dropout=0.5
    ).eval()  # fmt: skip
    images = torch.randint(0, 256, (5, 9, 9), dtype=torch.uint8)
    torch.testing.assert_close(model(images)[2:3], model(images[2:3]))


def test_it_learns(few_steps) -> None:
    run, _ = few_steps("image-classifier", "trainer.max_steps=4")
    losses = [row["train/loss"] for row in run.metrics() if "train/loss" in row]
    assert losses[-1] < losses[0]


@pytest.mark.data
def test_fashion_mnist_is_read_whole(data_folder: Path) -> None:
    from castiron.data import load
    from castiron.training.config_file import load_config

    path = data_folder / "fashion_mnist" / "t10k-images-idx3-ubyte.gz"
    loaded = load_config("image_classifier/fashion_mnist", [f"data.train={path}"])
    recipe = loaded.recipe(loaded.config)
    data = load(path, recipe.schema())
    assert data.array("image").shape == (10_000, 28, 28)
    assert np.bincount(data.array("label")).tolist() == [1000] * 10
    recipe.learn(data)
    assert (round(recipe.pixels.mean, 2), round(recipe.pixels.std, 2)) == (0.29, 0.35)
