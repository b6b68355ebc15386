"""Class of an image by a small residual network: `castiron train image-classifier`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field as Within
from pydantic import NonNegativeInt, PositiveInt

from castiron.data import Dataset, Field, Schema
from castiron.training import Recipe
from castiron_recipes.carrying import to_tensorflow, to_torch
from castiron_recipes.image_classifier.digits import write
from castiron_recipes.pixels import PixelScale

Share = Annotated[float, Within(ge=0, lt=1)]


class ImageClassifier(Recipe):
    """Grey images of one size, pixels uint8, to classes: convolutions, batch normalisation, residual blocks.

    Without data it trains on scikit-learn's digits, which are packaged. Pixels stay uint8 until the model.
    """

    name = "image-classifier"
    backends = ("torch", "tensorflow")

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
        stride: PositiveInt = 1
        """Pixels from place to place of the first convolution; 2 halves height and width."""
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
        self.pixels = PixelScale.of(train.array("image"))

    def save(self, folder: Path) -> None:
        self.pixels.save(folder)

    def load(self, folder: Path) -> None:
        self.pixels = PixelScale.load(folder)

    # --- model -------------------------------------------------------------------------------------

    def model(self) -> Any:
        make: Any
        if self.run.backend == "tensorflow":
            from castiron_recipes.image_classifier.keras_model import ResNet as make
        else:
            from castiron_recipes.image_classifier.model import ResNet as make

        c = self.config
        return make(
            len(c.classes),
            widths=c.widths,
            blocks=c.blocks,
            stride=c.stride,
            mean=self.pixels.mean,
            std=self.pixels.std,
            shift=c.shift,
            flip=c.flip,
            erase=c.erase,
            dropout=c.dropout,
        )

    def carried(self, weights: Mapping[str, np.ndarray], to: str) -> dict[str, np.ndarray]:
        return to_tensorflow(weights) if to == "tensorflow" else to_torch(weights)

    def inputs(self, batch: Mapping[str, Any]) -> tuple[Any, ...]:
        return (batch["image"],)

    def loss(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        smoothing = self.config.smoothing
        if self.run.backend == "tensorflow":
            import tensorflow as tf

            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], outputs)
            spread = -tf.reduce_mean(tf.nn.log_softmax(outputs), axis=1)
            return tf.reduce_mean((1 - smoothing) * losses + smoothing * spread)
        from torch.nn import functional as F

        return F.cross_entropy(outputs, batch["label"], label_smoothing=smoothing)

    def metrics(self) -> Mapping[str, Any]:
        if self.run.backend == "tensorflow":
            import keras

            return {"accuracy": keras.metrics.SparseCategoricalAccuracy()}
        from torchmetrics.classification import MulticlassAccuracy

        return {"accuracy": MulticlassAccuracy(len(self.config.classes), average="micro")}

    def answers(self, outputs: Any) -> list[dict[str, Any]]:
        exponentials = np.exp(outputs - outputs.max(1, keepdims=True))
        shares = exponentials / exponentials.sum(1, keepdims=True)
        names = self.config.classes
        return [{"label": names[int(row.argmax())], "probability": float(row.max())} for row in shares]
