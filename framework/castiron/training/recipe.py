"""A recipe: one training, declared. Data contract, model, loss, metrics and optimizer, in one class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from castiron.data import Dataset, Schema
from castiron.diagnostics import ConfigError, Place, finding
from castiron.training.questions import dataset_of

if TYPE_CHECKING:
    from castiron.data import Ragged
    from castiron.training.config import RunConfig

Batch = Mapping[str, Any]
"""Field name → tensor of the wing's framework; `<text field>_length` and `row` beside the fields."""


class Recipe:
    """What a training is made of. Subclass it, or a recipe that ships, and change what you need.

    A recipe decides nothing about number formats, devices, steps or files: those are the policy's and the
    trainer's. It is made anew for each run; what it learns from the training data (a vocabulary) is
    saved with the run and loaded again for `evaluate` and `predict`.

    Example:
        >>> class Bigger(LSTMSentiment):
        ...     name = "bigger-sentiment"
        ...     class Config(LSTMSentiment.Config):
        ...         hidden: int = 512
    """

    name: ClassVar[str]
    """Name of the recipe, in kebab-case; the folder of its runs."""
    backends: ClassVar[tuple[str, ...]] = ("torch",)
    """Backends that `model()` knows."""
    bucket_by: ClassVar[str | None] = None
    """Text field by whose length batches are made of rows of like length; null: no bucketing."""

    class Config(BaseModel):
        """The `model:` section of the config. The string under each field is its help."""

        model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def __init__(self, run: RunConfig) -> None:
        if run.backend not in self.backends:
            raise ConfigError(
                finding(
                    "X814",
                    f"The recipe '{self.name}' does not run on this backend.",
                    place=Place(key="backend"),
                    expected=" or ".join(repr(b) for b in self.backends),
                    received=repr(run.backend),
                )
            )
        self.run = run
        self.config: Any = run.model
        self.notes: list[str] = []
        """Lines for the user, printed before training starts."""

    # --- data --------------------------------------------------------------------------------------

    def schema(self) -> Schema:
        """The data contract: fields with roles, formats, ranges and what to do with missing values."""
        raise TypeError(f"{type(self).__name__} must define schema()")

    def embedded_data(self, folder: Path) -> Mapping[str, Path]:
        """Write the recipe's own default data below `folder`; split name → file.

        Called where the config names no training data. The columns are the schema's field names.

        Raises:
            ConfigError: the recipe has none.
        """
        raise ConfigError(
            finding(
                "X804",
                f"The recipe '{self.name}' has no embedded data.",
                place=Place(key="data.train"),
                expected="a path",
                received="null",
                remedy="Set data.train to a file.",
            )
        )

    def learn(self, train: Dataset) -> None:
        """Learn what encoding needs, from the training rows and no others: a vocabulary, a scale."""

    def encode(self, data: Dataset) -> Mapping[str, np.ndarray | Ragged]:
        """Rows as arrays [rows, …] or ragged sequences, by field; by default every field with a format."""
        return {n: values for n, values in data.columns.items() if isinstance(values, np.ndarray)}

    def save(self, folder: Path) -> None:
        """Save what `learn` learned."""

    def load(self, folder: Path) -> None:
        """Load what `save` saved; called in place of `learn` when a run is resumed or used."""

    def questions(self, inputs: Sequence[str | Mapping[str, Any]]) -> Dataset:
        """What `predict` was given, as rows: a text is the one text field, a mapping names fields."""
        return dataset_of(self.schema(), inputs)

    # --- model -------------------------------------------------------------------------------------

    def model(self) -> Any:
        """A new model of the backend's framework, in its default dtype; the plan is applied to it later."""
        raise TypeError(f"{type(self).__name__} must define model()")

    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        """The model's positional arguments."""
        raise TypeError(f"{type(self).__name__} must define inputs()")

    def targets(self, batch: Batch) -> Any:
        """What the outputs are compared with: the first field of role target."""
        return batch[self.schema().by_role("target")[0].name]

    def loss(self, outputs: Any, batch: Batch) -> Any:
        """The loss of a batch, a scalar. `outputs` come in the policy's loss dtype."""
        raise TypeError(f"{type(self).__name__} must define loss()")

    def predictions(self, outputs: Any) -> Any:
        """Outputs as the metrics take them: classes, probabilities, values."""
        return outputs

    def metrics(self) -> Mapping[str, Any]:
        """Name → new metric object of the backend (torchmetrics, keras.metrics). The loss comes by itself."""
        return {}

    def answers(self, outputs: Any) -> list[dict[str, Any]]:
        """Outputs as `predict` prints them: one JSON-ready mapping per row."""
        return [{"output": row.tolist()} for row in np.asarray(outputs)]

    def shapes(self) -> Mapping[str, str]:
        """Shapes at the boundaries of layers, which the audit checks: path → `"batch time -> batch 128"`.

        A name is an axis whose length is the same wherever it stands, a number a length, `_` any length,
        `...` any axes; tensors are parted by commas; the path "" is the model itself. A subclass with a
        `model()` of its own says its shapes itself: those of its parent are not held against it.
        """
        return {}

    def carried(self, weights: Mapping[str, np.ndarray], to: str) -> dict[str, np.ndarray]:
        """Weights of the model in the other backend, under the names and in the layouts of backend `to`.

        Raises:
            ConfigError: the recipe does not say how (X814).
        """
        raise ConfigError(
            finding(
                "X814",
                f"The recipe '{self.name}' does not say how its weights are carried to another backend.",
                place=Place(key="backend"),
                expected="a recipe with carried()",
                received=f"'{self.name}'",
            )
        )

    # --- optimizer ---------------------------------------------------------------------------------

    def optimizer(self, model: Any) -> Any | None:
        """An optimizer for the model; None: as `optimizer:` of the config says."""
        return None
