"""Errors over those hours of a horizon that were measured."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class MeasuredError(Metric):
    """Mean of |forecast - measured| ** power: 1 is the MAE, 2 the MSE."""

    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, power: int, **options: Any) -> None:
        super().__init__(**options)
        self.power = power
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, forecast: Tensor, measured: tuple[Tensor, Tensor]) -> None:
        """forecast [B, H, C]; measured: values [B, H, C], and whether they are known [B, H, C]."""
        values, known = measured
        errors = (forecast.to(self.total.dtype) - values.to(self.total.dtype)).abs() ** self.power
        self.total += torch.where(known, errors, 0).sum()
        self.count += known.sum()

    def compute(self) -> Tensor:
        return self.total / self.count
