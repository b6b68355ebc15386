"""Matrix products of growing inner length, for their rounding errors: `castiron compare matrix-product`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import PositiveInt, field_validator

from castiron.data import Field, Schema
from castiron.data.files import written_atomically
from castiron.training import Recipe

ROWS = {"train": 256, "validation": 64, "test": 64}


class MatrixProduct(Recipe):
    """Rows times matrices, the first 16 numbers of a row, the first 64, and so on: a layer for each length.

    There is little to learn (the mean of the products is pulled to a target); what is of interest is how far
    the products of two policies lie apart. Without signs nothing cancels, and rounding errors add up.
    """

    name = "matrix-product"

    class Config(Recipe.Config):
        """What can be set in `model:`."""

        lengths: tuple[PositiveInt, ...] = (16, 64, 256, 1024, 4096)
        """Inner lengths, ascending; a row of data has as many numbers as the last."""
        columns: PositiveInt = 64
        """Columns of each matrix."""
        signs: Literal["none", "both"] = "none"
        """none: rows and matrices are uniform in [0, 1). both: in [-1, 1), so that sums cancel."""
        sums: Literal["kernel", "in-order"] = "kernel"
        """kernel: as the device multiplies matrices. in-order: one after the other, each sum rounded."""

        @field_validator("lengths")
        @classmethod
        def _ascend(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
            if not lengths or list(lengths) != sorted(set(lengths)):
                raise ValueError(f"lengths is {list(lengths)}; expected numbers that ascend")
            return lengths

    config: Config

    # --- data --------------------------------------------------------------------------------------

    def schema(self) -> Schema:
        return Schema.of(
            Field(name="row_values", role="feature", dtype="float32", shape=(self.config.lengths[-1],)),
            Field(name="target", role="target", dtype="float32"),
        )

    def embedded_data(self, folder: Path) -> Mapping[str, Path]:
        random = np.random.default_rng(self.run.seed)
        files = {}
        for split, rows in ROWS.items():
            values = random.random((rows, self.config.lengths[-1]), np.float32)
            if self.config.signs == "both":
                values = 2 * values - 1
            files[split] = folder / f"{split}.npz"
            with written_atomically(files[split]) as file:
                np.savez(file, row_values=values, target=np.ones(rows, np.float32))
        return files

    # --- model -------------------------------------------------------------------------------------

    def model(self) -> Any:
        from castiron_recipes.matrix_product.model import Products

        c = self.config
        return Products(c.lengths, c.columns, signs=c.signs == "both", in_order=c.sums == "in-order")

    def inputs(self, batch: Mapping[str, Any]) -> tuple[Any, ...]:
        return (batch["row_values"],)

    def loss(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        return ((outputs - batch["target"]) ** 2).mean()
