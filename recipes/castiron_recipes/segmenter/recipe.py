"""The class of every pixel by a small U-Net: `castiron train segmenter`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field as Within
from pydantic import PositiveInt, model_validator

from castiron.data import Dataset, Field, Schema
from castiron.training import Recipe
from castiron_recipes.carrying import to_tensorflow, to_torch
from castiron_recipes.pixels import PixelScale
from castiron_recipes.segmenter.shapes import CLASSES, write

Width = Annotated[int, Within(gt=0, multiple_of=4)]


class Segmenter(Recipe):
    """Grey images of one size to masks of the same size, by a U-Net whose blocks declare their shapes.

    Without data it generates images of discs, boxes and triangles. Files are NumPy archives with `image` and
    `mask`, uint8 [rows, height, width].
    """

    name = "segmenter"
    backends = ("torch", "tensorflow")

    class Config(Recipe.Config):
        """What can be set in `model:`."""

        size: tuple[PositiveInt, PositiveInt] = (32, 32)
        """Height and width; each can be halved once per level but the first."""
        classes: tuple[str, ...] = CLASSES
        """Names of the classes, from class 0."""
        widths: tuple[Width, ...] = (12, 24, 48)
        """Channels of each level, from the image's own resolution down."""

        @model_validator(mode="after")
        def _can_be_halved(self) -> Segmenter.Config:
            factor = 2 ** (len(self.widths) - 1)
            if any(side % factor for side in self.size):
                raise ValueError(
                    f"size is {list(self.size)}; expected multiples of {factor}, as height and width are "
                    f"halved for {len(self.widths) - 1} of the {len(self.widths)} levels"
                )
            return self

    config: Config

    # --- data --------------------------------------------------------------------------------------

    def schema(self) -> Schema:
        c = self.config
        return Schema.of(
            Field(name="image", role="image", shape=c.size),
            Field(
                name="mask",
                role="target",
                dtype="int64",
                shape=c.size,
                minimum=0,
                maximum=len(c.classes) - 1,
            ),
        )

    def embedded_data(self, folder: Path) -> Mapping[str, Path]:
        return write(folder, seed=self.run.seed, size=self.config.size)

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
            from castiron_recipes.segmenter.keras_model import UNet as make
        else:
            from castiron_recipes.segmenter.model import UNet as make

        c = self.config
        return make(len(c.classes), widths=c.widths, mean=self.pixels.mean, std=self.pixels.std)

    def shapes(self) -> Mapping[str, str]:
        if self.run.backend == "tensorflow":
            return {}  # the audit of Keras models holds no shapes against a step yet
        return self.model().contracts()  # type: ignore[no-any-return]

    def carried(self, weights: Mapping[str, np.ndarray], to: str) -> dict[str, np.ndarray]:
        # The scale is the model's own in PyTorch, a layer's in Keras.
        if to == "tensorflow":
            own = {f"pixels.{name}": weights[name] for name in ("mean", "std")}
            return to_tensorflow({n: w for n, w in weights.items() if n not in ("mean", "std")}) | own
        return to_torch({name.removeprefix("pixels."): weight for name, weight in weights.items()})

    def inputs(self, batch: Mapping[str, Any]) -> tuple[Any, ...]:
        return (batch["image"],)

    def loss(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        if self.run.backend == "tensorflow":
            import tensorflow as tf

            logits = tf.transpose(outputs, [0, 2, 3, 1])
            return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(batch["mask"], logits))
        from torch.nn import functional as F

        return F.cross_entropy(outputs, batch["mask"])

    def predictions(self, outputs: Any) -> Any:
        """Logits with the classes where the backend's metrics look for them: last in Keras."""
        if self.run.backend == "tensorflow":
            import tensorflow as tf

            return tf.transpose(outputs, [0, 2, 3, 1])
        return outputs

    def metrics(self) -> Mapping[str, Any]:
        classes = len(self.config.classes)
        if self.run.backend == "tensorflow":
            import keras

            return {
                "iou": keras.metrics.MeanIoU(classes, sparse_y_pred=False),
                "accuracy": keras.metrics.SparseCategoricalAccuracy(),
            }
        from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

        return {
            "iou": MulticlassJaccardIndex(classes),
            "accuracy": MulticlassAccuracy(classes, average="micro"),
        }

    def answers(self, outputs: Any) -> list[dict[str, Any]]:
        names = self.config.classes
        shares = [np.bincount(m.argmax(0).reshape(-1), minlength=len(names)) / m[0].size for m in outputs]
        return [dict(zip(names, map(float, share), strict=True)) for share in shares]
