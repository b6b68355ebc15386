"""Classes or a value from a table with strings and gaps: `castiron train tabular`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field as Within
from pydantic import PositiveInt

from castiron.data import Dataset, Field, Missing, Ragged, Schema
from castiron.training import Recipe
from castiron_recipes.carrying import to_tensorflow, to_torch
from castiron_recipes.tabular.dirt import Table, write
from castiron_recipes.tabular.encoding import Scale, TableEncoder

Share = Annotated[float, Within(ge=0, lt=1)]


class Tabular(Recipe):
    """A table: embeddings of categories, scaled numbers, an MLP; without hidden layers a linear model.

    Which columns there are stands in the config, and what a gap looks like. A gap in a column of numbers
    becomes the training median and is told by a feature of its own; one in a category is a category.
    """

    name = "tabular"
    backends = ("torch", "tensorflow")

    class Config(Recipe.Config):
        """What can be set in `model:`."""

        table: Table = "breast-cancer"
        """Embedded table, where the config names no files: breast-cancer or diabetes."""
        numbers: tuple[str, ...]
        """Columns of numbers."""
        categories: tuple[str, ...] = ()
        """Columns of words."""
        target: str
        """Column that is predicted."""
        classes: dict[str, int] | None = None
        """Target text → class. null: the target is a number, and the loss is the mean squared error."""
        gaps: tuple[str, ...] = ("", "?", "NA", "N/A")
        """How a missing cell is written, blanks around it left aside."""
        zero_is_gap: tuple[str, ...] = ()
        """Columns of numbers in which 0 means missing."""
        log: tuple[str, ...] = ()
        """Columns of numbers that are taken as log(1 + x): those with a long tail."""
        rare: PositiveInt = 5
        """A word in fewer training rows than this counts as unseen, as a new one will."""
        hidden: tuple[PositiveInt, ...] = (64, 64)
        """Widths of the hidden layers. []: a linear model."""
        embedding: PositiveInt = 8
        """Size of a category's vector, at most."""
        dropout: Share = 0.1
        """Dropout after each hidden layer."""

    config: Config

    # --- data --------------------------------------------------------------------------------------

    def schema(self) -> Schema:
        c = self.config
        around = tuple(
            f"{before}{gap}{after}" for gap in c.gaps for before in ("", " ") for after in ("", " ")
        )
        words = Missing(treatment="constant", value="", spellings=tuple(dict.fromkeys(around)))
        gap = Missing(treatment="nan", spellings=c.gaps)
        drop = Missing(treatment="drop", spellings=c.gaps)
        target: dict[str, Any] = {"dtype": "float32"} if c.classes is None else {"categories": c.classes}
        return Schema.of(
            *(Field(name=name, dtype="float32", missing=gap) for name in c.numbers),
            *(Field(name=name, role="text", missing=words) for name in c.categories),
            Field(name=c.target, role="target", missing=drop, **target),
            key=(),  # two rows of the same words are two rows
        )

    def embedded_data(self, folder: Path) -> Mapping[str, Path]:
        return write(self.config.table, folder, seed=self.run.seed)

    def learn(self, train: Dataset) -> None:
        c = self.config
        self.encoder = TableEncoder.fit(
            self._known(train), c.numbers, c.categories, logs=c.log, missing=c.gaps, at_least=c.rare
        )
        self.scale = Scale.of(train.array(c.target)) if c.classes is None else None

    def encode(self, data: Dataset) -> Mapping[str, np.ndarray | Ragged]:
        columns: dict[str, np.ndarray | Ragged] = {**self.encoder.encode(self._known(data))}
        if self.config.target in data:
            columns[self.config.target] = data.array(self.config.target)
        return columns

    def _known(self, data: Dataset) -> Dataset:
        """The rows, with NaN where a 0 means missing."""
        found = dict(data.columns)
        for name in self.config.zero_is_gap:
            values = data.array(name)
            found[name] = np.where(values == 0, np.float32("nan"), values)
        return Dataset(data.schema, found)

    def save(self, folder: Path) -> None:
        self.encoder.save(folder / "table.json")
        if self.scale is not None:
            (folder / "target.json").write_text(self.scale.model_dump_json(), encoding="utf-8")

    def load(self, folder: Path) -> None:
        self.encoder = TableEncoder.load(folder / "table.json")
        path = folder / "target.json"
        self.scale = Scale.model_validate_json(path.read_bytes()) if path.exists() else None

    # --- model -------------------------------------------------------------------------------------

    @property
    def outputs(self) -> int:
        """Classes, or 1 where the target is a number."""
        return 1 if self.config.classes is None else max(self.config.classes.values()) + 1

    def model(self) -> Any:
        make: Any
        if self.run.backend == "tensorflow":
            from castiron_recipes.tabular.keras_model import TableNet as make
        else:
            from castiron_recipes.tabular.model import TableNet as make

        c, table = self.config, self.encoder
        return make(
            table.features,
            table.vocabularies,
            self.outputs,
            hidden=c.hidden,
            embedding=c.embedding,
            dropout=c.dropout,
        )

    def carried(self, weights: Mapping[str, np.ndarray], to: str) -> dict[str, np.ndarray]:
        return to_tensorflow(weights) if to == "tensorflow" else to_torch(weights)

    def inputs(self, batch: Mapping[str, Any]) -> tuple[Any, ...]:
        return batch["numbers"], batch["categories"]

    def loss(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        target = batch[self.config.target]
        if self.scale is not None:
            # In units of the target's own deviation: between 256 and 512, bfloat16 has only even numbers.
            target = (target - self.scale.mean) / self.scale.std
        if self.run.backend == "tensorflow":
            import tensorflow as tf

            if self.scale is None:
                return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(target, outputs))
            return tf.reduce_mean(tf.square(outputs[:, 0] - target))
        from torch.nn import functional as F

        return F.cross_entropy(outputs, target) if self.scale is None else F.mse_loss(outputs[:, 0], target)

    def predictions(self, outputs: Any) -> Any:
        return outputs if self.scale is None else self.scale.undo(outputs[:, 0])

    def metrics(self) -> Mapping[str, Any]:
        if self.run.backend == "tensorflow":
            import keras

            from castiron_recipes.tabular.keras_model import R2, MacroAUROC

            if self.config.classes is None:
                return {"rmse": keras.metrics.RootMeanSquaredError(), "r2": R2()}
            accuracy = keras.metrics.SparseCategoricalAccuracy()
            return {"accuracy": accuracy, "auroc": MacroAUROC(self.outputs)}
        if self.config.classes is None:
            from torchmetrics import MeanSquaredError, R2Score

            return {"rmse": MeanSquaredError(squared=False), "r2": R2Score()}
        from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

        return {
            "accuracy": MulticlassAccuracy(self.outputs, average="micro"),
            "auroc": MulticlassAUROC(self.outputs),
        }

    def answers(self, outputs: Any) -> list[dict[str, Any]]:
        if self.scale is not None:
            return [{self.config.target: float(value)} for value in self.scale.undo(outputs[:, 0])]
        names: dict[int, str] = {}
        for name, index in (self.config.classes or {}).items():
            names.setdefault(index, name)
        exponentials = np.exp(outputs - outputs.max(1, keepdims=True))
        shares = exponentials / exponentials.sum(1, keepdims=True)
        return [
            {self.config.target: names[int(row.argmax())], "probability": float(row.max())} for row in shares
        ]
