"""The next hours of a series from the last ones: `castiron train series-forecaster`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field as Within
from pydantic import PositiveInt, model_validator

from castiron.data import Dataset, Field, Missing, Schema, Windows
from castiron.data.windows import last_known
from castiron.training import Recipe
from castiron.training.questions import dataset_of
from castiron_recipes.carrying import to_tensorflow, to_torch
from castiron_recipes.series_forecaster.sensors import SENSORS, write

Share = Annotated[float, Within(ge=0, lt=1)]


class SeriesForecaster(Recipe):
    """All columns of a series over a horizon, from a window of its past: NLinear, DLinear or an LSTM.

    The splits are stretches of one file, one after the other; validation and test windows look back into what
    was before them. Columns are scaled by mean and deviation of the training rows. A gap takes the last known
    value as an input, and counts neither in the loss nor in the metrics.
    """

    name = "series-forecaster"
    backends = ("torch", "tensorflow")

    class Config(Recipe.Config):
        """What can be set in `model:`."""

        columns: tuple[str, ...] = SENSORS
        """Columns that are read and forecast."""
        gaps: tuple[str, ...] = ("", "NA")
        """How a missing reading is written."""
        rows: dict[Literal["train", "validation", "test"], tuple[int, int]] = {
            "train": (0, 2800),
            "validation": (2800, 3400),
            "test": (3400, 4000),
        }
        """Split → first row and row after its last, whose hours are forecast."""
        network: Literal["nlinear", "dlinear", "lstm"] = "nlinear"
        """nlinear, dlinear or lstm."""
        past: PositiveInt = 168
        """Hours that a forecast is made from."""
        horizon: PositiveInt = 24
        """Hours that are forecast."""
        hidden: PositiveInt = 64
        """lstm: size of the state."""
        layers: PositiveInt = 1
        """lstm: layers, one upon the other."""
        dropout: Share = 0.2
        """lstm: dropout before the head."""

        @model_validator(mode="after")
        def _long_enough(self) -> SeriesForecaster.Config:
            first, end = self.rows["train"]
            if end - first < self.past + self.horizon:
                raise ValueError(
                    f"rows.train has {end - first} rows; expected past + horizon "
                    f"({self.past + self.horizon}) or more"
                )
            return self

    config: Config

    # --- data --------------------------------------------------------------------------------------

    def schema(self) -> Schema:
        return self._schema(())

    def questions(self, inputs: Sequence[str | Mapping[str, Any]]) -> Dataset:
        """To `predict`, an input is a window: column → list of its last `past` hours."""
        return dataset_of(self._schema((self.config.past,)), inputs)

    def _schema(self, shape: tuple[int, ...]) -> Schema:
        gap = Missing(treatment="nan", spellings=self.config.gaps)
        fields = (Field(name=n, dtype="float32", shape=shape, missing=gap) for n in self.config.columns)
        return Schema.of(*fields)

    def embedded_data(self, folder: Path) -> Mapping[str, Path]:
        path = write(folder, seed=self.run.seed)
        return {"train": path, "validation": path, "test": path}

    def learn(self, train: Dataset) -> None:
        first, end = self.config.rows["train"]
        values = self._values(train)[first:end].astype(np.float64)
        self.mean = np.nanmean(values, axis=0)
        # A sensor that stands still has no deviation to scale by.
        std = np.nanstd(values, axis=0)
        self.std = np.where(std > 0, std, 1.0)

    def encode(self, data: Dataset) -> Mapping[str, Any]:
        c = self.config
        values = self._values(data)
        if values.ndim == 3:  # windows that were asked about
            return {"past": np.stack([self._scaled(window) for window in values])}
        scaled, known = self._scaled(values), ~np.isnan(values)
        starts = self._starts(data.report.split, len(values))
        return {
            "past": Windows(scaled, starts, c.past),
            "future": Windows(scaled, starts + c.past, c.horizon),
            "known": Windows(known, starts + c.past, c.horizon),
        }

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        """float32 [T, C] with gaps → without; scaled in float64 and rounded once."""
        scaled: np.ndarray = ((last_known(values) - self.mean) / self.std).astype(np.float32)
        return scaled

    def _starts(self, split: str, rows: int) -> np.ndarray:
        """int64: where each window of a split begins."""
        c = self.config
        first, end = c.rows[split]  # type: ignore[index]
        first = first if split == "train" else first - c.past
        return np.arange(max(first, 0), min(end, rows) - c.past - c.horizon + 1)

    def _values(self, data: Dataset) -> np.ndarray:
        """float32 [rows, C], or [windows, past, C]; NaN where missing."""
        return np.stack([data.array(name) for name in self.config.columns], axis=-1)

    def save(self, folder: Path) -> None:
        scale = {"mean": self.mean.tolist(), "std": self.std.tolist()}
        (folder / "scale.json").write_text(json.dumps(scale), encoding="utf-8")

    def load(self, folder: Path) -> None:
        scale = json.loads((folder / "scale.json").read_text(encoding="utf-8"))
        self.mean, self.std = np.array(scale["mean"]), np.array(scale["std"])

    # --- model -------------------------------------------------------------------------------------

    def model(self) -> Any:
        c, networks = self.config, self._networks()
        if c.network == "lstm":
            return networks.LSTMForecaster(
                len(c.columns), c.horizon, hidden=c.hidden, layers=c.layers, dropout=c.dropout
            )
        return (networks.NLinear if c.network == "nlinear" else networks.DLinear)(c.past, c.horizon)

    def _networks(self) -> Any:
        """The backend's file of models."""
        networks: Any
        if self.run.backend == "tensorflow":
            from castiron_recipes.series_forecaster import keras_model as networks
        else:
            from castiron_recipes.series_forecaster import model as networks
        return networks

    def carried(self, weights: Mapping[str, np.ndarray], to: str) -> dict[str, np.ndarray]:
        return to_tensorflow(weights) if to == "tensorflow" else to_torch(weights)

    def inputs(self, batch: Mapping[str, Any]) -> tuple[Any, ...]:
        return (batch["past"],)

    def targets(self, batch: Mapping[str, Any]) -> Any:
        return batch["future"], batch["known"]

    def loss(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        future = batch["future"]
        if self.run.backend == "tensorflow":
            import tensorflow as tf

            future = tf.cast(future, outputs.dtype)
        else:
            future = future.to(outputs.dtype)
        return self._networks().masked_mean((outputs - future) ** 2, batch["known"])

    def metrics(self) -> Mapping[str, Any]:
        measured: Any
        if self.run.backend == "tensorflow":
            from castiron_recipes.series_forecaster.keras_model import MeasuredError as measured
        else:
            from castiron_recipes.series_forecaster.metrics import MeasuredError as measured

        return {"mse": measured(2), "mae": measured(1)}

    def answers(self, outputs: Any) -> list[dict[str, Any]]:
        units = outputs * self.std + self.mean
        return [dict(zip(self.config.columns, row.T.tolist(), strict=True)) for row in units]
