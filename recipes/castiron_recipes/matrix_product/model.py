"""The model: one matrix product per inner length.

Shapes: B rows, N numbers in a row, C columns of each matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class InOrder(nn.Linear):
    """A linear layer without bias that adds one product after the other: the textbook's sum."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, N] → [B, C]."""
        total = input.new_zeros(len(input), self.out_features)
        for x, w in zip(input.T, self.weight.T, strict=True):
            total = total + x[:, None] * w
        return total


class Products(nn.Module):
    """The first n numbers of each row times a matrix [n, C], for every length n."""

    def __init__(self, lengths: Sequence[int], columns: int, *, signs: bool, in_order: bool) -> None:
        """
        Args:
            lengths: inner lengths, ascending.
            signs: whether matrices are uniform in [-1, 1), instead of [0, 1).
            in_order: whether sums are taken one product after the other.
        """
        super().__init__()
        self.lengths = tuple(lengths)
        for n in self.lengths:
            layer = (InOrder if in_order else nn.Linear)(n, columns, bias=False)
            nn.init.uniform_(layer.weight, -1.0 if signs else 0.0, 1.0)
            self.add_module(f"n{n}", layer)

    def forward(self, rows: Tensor) -> Tensor:
        """[B, N] → [B]: the mean of all products, each divided by its length."""
        means = [self.get_submodule(f"n{n}")(rows[:, :n]).mean(dim=1) / n for n in self.lengths]
        return torch.stack(means, dim=1).mean(dim=1)
