"""Class of an image by a small residual network: `castiron train image-classifier`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field as Within
from pydantic import NonNegativeInt, PositiveInt

from castiron.data import Dataset, Field, Schema
from castiron.training import Recipe
from castiron_recipes.image_classifier.digits import write

Share = Annotated[float, Within(ge=0, lt=1)]


class ImageClassifier(Recipe):
    """Grey images of one size, pixels uint8, to classes: convolutions, batch normalisation, residual blocks.

    Without data it trains on scikit-learn's digits, which are packaged. Pixels stay uint8 until the model.
    """

    name = "image-classifier"

    class Config(Recipe.Config):
        """What can be set in `model:`."""

        size: tuple[PositiveInt, PositiveInt] = (8, 8)
        """Height and width of the images."""
        classes: tuple[str, ...] = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
        """Names of the classes, from class 0."""
        widths: tuple[PositiveInt, ...] = (16, 32)
        """Channels of each group of blocks; from the second on, a group halves height and width."""
        blocks: PositiveInt = 1
        """Residual blocks in each group."""
        shift: NonNegativeInt = 1
        """Training images are shifted by up to so many pixels."""
        flip: bool = False
        """Whether training images are mirrored, left to right, every other time."""
        erase: NonNegativeInt = 0
        """Side of a square that is erased in each training image."""
        dropout: Share = 0.0
        """Dropout before the head."""
        smoothing: Share = 0.0
        """Label smoothing: the share of each target that is spread over all classes."""

    config: Config

    # --- data --------------------------------------------------------------------------------------

    def schema(self) -> Schema:
        return Schema.of(
            Field(name="image", role="image", shape=self.config.size),
            Field(
                name="label",
                role="target",
                dtype="int64",
                minimum=0,
                maximum=len(self.config.classes) - 1,
            ),
        )

    def embedded_data(self, folder: Path) -> Mapping[str, Path]:
        return write(folder, seed=self.run.seed)

    def learn(self, train: Dataset) -> None:
        # A histogram, not a cast of all images to float64: 256 numbers instead of 8 bytes a pixel.
        counts = np.bincount(train.array("image").reshape(-1), minlength=256)
        values = np.arange(256) / 255
        self.mean = float(np.average(values, weights=counts))
        self.std = float(np.sqrt(np.average((values - self.mean) ** 2, weights=counts))) or 1.0

    def save(self, folder: Path) -> None:
        (folder / "pixels.json").write_text(json.dumps({"mean": self.mean, "std": self.std}))

    def load(self, folder: Path) -> None:
        pixels = json.loads((folder / "pixels.json").read_text())
        self.mean, self.std = pixels["mean"], pixels["std"]

    # --- model -------------------------------------------------------------------------------------

    def model(self) -> Any:
        from castiron_recipes.image_classifier.model import ResNet

        c = self.config
        return ResNet(
            len(c.classes),
            widths=c.widths,
            blocks=c.blocks,
            mean=self.mean,
            std=self.std,
            shift=c.shift,
            flip=c.flip,
            erase=c.erase,
            dropout=c.dropout,
        )

    def inputs(self, batch: Mapping[str, Any]) -> tuple[Any, ...]:
        return (batch["image"],)

    def loss(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        from torch.nn import functional as F

        return F.cross_entropy(outputs, batch["label"], label_smoothing=self.config.smoothing)

    def metrics(self) -> Mapping[str, Any]:
        from torchmetrics.classification import MulticlassAccuracy

        return {"accuracy": MulticlassAccuracy(len(self.config.classes), average="micro")}

    def answers(self, outputs: Any) -> list[dict[str, Any]]:
        exponentials = np.exp(outputs - outputs.max(1, keepdims=True))
        shares = exponentials / exponentials.sum(1, keepdims=True)
        names = self.config.classes
        return [{"label": names[int(row.argmax())], "probability": float(row.max())} for row in shares]
