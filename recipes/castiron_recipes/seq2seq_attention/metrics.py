"""The share of rows that come out whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class ExactMatch(Metric):
    """The share of rows with every symbol right, padding left aside."""

    higher_is_better = True
    full_state_update = False
    right: Tensor
    rows: Tensor

    def __init__(self, padding: int, **options: Any) -> None:
        super().__init__(**options)
        self.padding = padding
        self.add_state("right", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, found: Tensor, wanted: Tensor) -> None:
        """Both int64 [B, T]."""
        self.right += ((found == wanted) | (wanted == self.padding)).all(1).sum()
        self.rows += len(wanted)

    def compute(self) -> Tensor:
        return self.right / self.rows
