"""The class of every pixel by a small U-Net: `castiron train segmenter`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field as Within
from pydantic import PositiveInt, model_validator

from castiron.data import Dataset, Field, Schema
from castiron.training import Recipe
from castiron_recipes.segmenter.shapes import CLASSES, write

Width = Annotated[int, Within(gt=0, multiple_of=4)]


class Segmenter(Recipe):
    """Grey images of one size to masks of the same size, by a U-Net whose blocks declare their shapes.

    Without data it generates images of discs, boxes and triangles. Files are NumPy archives with `image` and
    `mask`, uint8 [rows, height, width].
    """

    name = "segmenter"

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
        from castiron_recipes.segmenter.model import UNet

        c = self.config
        return UNet(len(c.classes), widths=c.widths, mean=self.mean, std=self.std)

    def shapes(self) -> Mapping[str, str]:
        return self.model().contracts()  # type: ignore[no-any-return]

    def inputs(self, batch: Mapping[str, Any]) -> tuple[Any, ...]:
        return (batch["image"],)

    def loss(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        from torch.nn import functional as F

        return F.cross_entropy(outputs, batch["mask"])

    def metrics(self) -> Mapping[str, Any]:
        from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

        classes = len(self.config.classes)
        return {
            "iou": MulticlassJaccardIndex(classes),
            "accuracy": MulticlassAccuracy(classes, average="micro"),
        }

    def answers(self, outputs: Any) -> list[dict[str, Any]]:
        names = self.config.classes
        shares = [np.bincount(m.argmax(0).reshape(-1), minlength=len(names)) / m[0].size for m in outputs]
        return [dict(zip(names, map(float, share), strict=True)) for share in shares]
