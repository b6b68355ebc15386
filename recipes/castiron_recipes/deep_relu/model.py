"""The model: linear layers with a ReLU between them, in He's initialization.

Shapes: B rows, N numbers in a row, W width.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class DeepNet(nn.Module):
    """[B, N] → [B]. Without biases: nothing exact is added that would hide the errors of what came before."""

    def __init__(self, features: int, width: int, depth: int) -> None:
        """
        Args:
            depth: hidden layers.
        """
        super().__init__()
        sizes = [features] + [width] * depth
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            linear = nn.Linear(before, after, bias=False)
            # variance 2/N: magnitudes stay, however many layers follow (He et al. 2015)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            layers += [linear, nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, 1)

    def forward(self, rows: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.body(rows))
        return outputs[:, 0]
