"""The model: embeddings of categories beside numbers, then an MLP or nothing but a linear map.

Shapes: B rows, N numbers, K categorical columns, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class TableNet(nn.Module):
    """Numbers and categories to outputs."""

    def __init__(
        self,
        numbers: int,
        categories: Sequence[int],
        outputs: int,
        *,
        hidden: Sequence[int],
        embedding: int,
        dropout: float,
    ) -> None:
        """
        Args:
            numbers: N.
            categories: size of each categorical column's vocabulary; number 0 stands for a missing cell.
            hidden: widths of the hidden layers; none: the outputs are linear in numbers and embeddings.
        """
        super().__init__()
        tables = [nn.Embedding(size, min(embedding, size)) for size in categories]
        for table in tables:
            nn.init.normal_(table.weight, std=0.1)
        self.embeddings = nn.ModuleList(tables)
        sizes = [numbers + sum(table.embedding_dim for table in tables), *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(sizes[-1], outputs)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        """numbers [B, N], categories int64 [B, K] → [B, O]."""
        vectors = [table(categories[:, k]) for k, table in enumerate(self.embeddings)]
        if vectors:
            numbers = torch.cat([numbers.to(vectors[0].dtype), *vectors], dim=1)
        outputs: Tensor = self.head(self.body(numbers))
        return outputs
