"""The models: two linear baselines and an LSTM. Each maps a window of the past to the whole horizon at once.

Shapes: B windows, L hours of the past, H hours of the horizon, C columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NLinear(nn.Module):
    """A linear map over time, shared by all columns, of differences to the last hour (Zeng et al., 2023)."""

    def __init__(self, past: int, horizon: int) -> None:
        super().__init__()
        self.linear = nn.Linear(past, horizon)
        nn.init.constant_(self.linear.weight, 1 / past)
        nn.init.zeros_(self.linear.bias)

    def forward(self, past: Tensor) -> Tensor:
        """[B, L, C] → [B, H, C]."""
        last = past[:, -1:]
        change: Tensor = self.linear((past - last).transpose(1, 2))
        return change.transpose(1, 2) + last


class DLinear(nn.Module):
    """A linear map of the trend and one of what is left of it (Zeng et al., 2023)."""

    def __init__(self, past: int, horizon: int, *, window: int = 25) -> None:
        """
        Args:
            window: hours of the moving average that is the trend; odd.
        """
        super().__init__()
        self.window = window
        self.trend = nn.Linear(past, horizon)
        self.season = nn.Linear(past, horizon)
        for part in (self.trend, self.season):
            nn.init.constant_(part.weight, 1 / past)
            nn.init.zeros_(part.bias)

    def forward(self, past: Tensor) -> Tensor:
        """[B, L, C] → [B, H, C]."""
        x = past.transpose(1, 2)
        trend = moving_average(x, self.window)
        found: Tensor = self.trend(trend) + self.season(x - trend)
        return found.transpose(1, 2)


class LSTMForecaster(nn.Module):
    """An LSTM over the past; its last state says how all hours of the horizon differ from the last hour."""

    def __init__(self, columns: int, horizon: int, *, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.horizon, self.columns = horizon, columns
        self.lstm = nn.LSTM(columns, hidden, layers, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, horizon * columns)

    def forward(self, past: Tensor) -> Tensor:
        """[B, L, C] → [B, H, C]."""
        last = past[:, -1:]
        states, _ = self.lstm(past - last)
        change: Tensor = self.head(self.dropout(states[:, -1]))
        return change.view(-1, self.horizon, self.columns) + last


def moving_average(x: Tensor, window: int) -> Tensor:
    """[B, C, L] → [B, C, L]; the edges stand for what is beyond them."""
    return F.avg_pool1d(F.pad(x, [window // 2] * 2, mode="replicate"), window, stride=1)


def masked_mean(values: Tensor, known: Tensor) -> Tensor:
    """Mean of `values` where `known`; 0 where nothing is. Both [B, H, C]."""
    count = known.sum().clamp(min=1)
    return torch.where(known, values, values.new_zeros(())).sum() / count
