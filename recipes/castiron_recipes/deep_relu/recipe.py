"""A deep ReLU network on a generated regression: `castiron compare deep-relu`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import PositiveInt

from castiron.data import Field, Schema
from castiron.data.files import written_atomically
from castiron.training import Recipe

ROWS = {"train": 2048, "validation": 512, "test": 512}
NOISE = 0.1
"""Standard deviation of the noise on a target whose own is 1."""


class DeepReLU(Recipe):
    """Numbers to a number through many ReLU layers: what float32 does to a deep network, beside float64.

    The generated target is a sine of a random direction of the row, and noise.
    """

    name = "deep-relu"

    class Config(Recipe.Config):
        """What can be set in `model:`."""

        features: PositiveInt = 32
        """Numbers in a row."""
        width: PositiveInt = 128
        """Units of each hidden layer."""
        depth: PositiveInt = 32
        """Hidden layers."""

    config: Config

    # --- data --------------------------------------------------------------------------------------

    def schema(self) -> Schema:
        return Schema.of(
            Field(name="numbers", role="feature", dtype="float32", shape=(self.config.features,)),
            Field(name="target", role="target", dtype="float32"),
        )

    def embedded_data(self, folder: Path) -> Mapping[str, Path]:
        random = np.random.default_rng(self.run.seed)
        direction = random.standard_normal(self.config.features)
        direction /= np.linalg.norm(direction)
        files = {}
        for split, rows in ROWS.items():
            numbers = random.standard_normal((rows, self.config.features)).astype(np.float32)
            target = 1.5 * np.sin(numbers @ direction) + random.normal(0, NOISE, rows)
            files[split] = folder / f"{split}.npz"
            with written_atomically(files[split]) as file:
                np.savez(file, numbers=numbers, target=target.astype(np.float32))
        return files

    # --- model -------------------------------------------------------------------------------------

    def model(self) -> Any:
        from castiron_recipes.deep_relu.model import DeepNet

        c = self.config
        return DeepNet(c.features, c.width, c.depth)

    def inputs(self, batch: Mapping[str, Any]) -> tuple[Any, ...]:
        return (batch["numbers"],)

    def loss(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        from torch.nn import functional as F

        return F.mse_loss(outputs, batch["target"])

    def metrics(self) -> Mapping[str, Any]:
        from torchmetrics import MeanSquaredError

        return {"rmse": MeanSquaredError(squared=False)}
