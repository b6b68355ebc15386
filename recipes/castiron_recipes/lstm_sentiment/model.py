"""The model: embedding, (bi)LSTM over rows of unequal length, pooling, head.

Shapes: B rows, T tokens (the longest row of the batch), E embedding, H hidden, D directions, C classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PAD, UNKNOWN = 0, 1
Pooling = Literal["max", "mean", "max+mean"]


class SentimentLSTM(nn.Module):
    """Token ids to class logits."""

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        *,
        embedding: int,
        hidden: int,
        embedding_std: float = 0.1,
        layers: int = 1,
        bidirectional: bool = True,
        pooling: Pooling = "max",
        dropout: float = 0.5,
        embedding_dropout: float = 0.3,
        word_dropout: float = 0.0,
        vectors: Tensor | None = None,
    ) -> None:
        """
        Args:
            vectors: float32 [vocabulary, E], pretrained; rows that are all zero stay as they were drawn.
        """
        super().__init__()
        self.word_dropout = WordDropout(word_dropout)
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=embedding_std)
        with torch.no_grad():
            self.embedding.weight[PAD].zero_()
            if vectors is not None:
                known = vectors.any(1)
                self.embedding.weight[known] = vectors[known]
        self.embedding_dropout = FeatureDropout(embedding_dropout)
        self.lstm = VariableLengthLSTM(embedding, hidden, layers=layers, bidirectional=bidirectional)
        self.pooling: Pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.lstm.output_size * len(pooling.split("+")), classes)

    def forward(self, ids: Tensor, length: Tensor) -> Tensor:
        """ids int64 [B, T] padded with 0, length int64 [B] → logits [B, C]."""
        x = self.embedding(self.word_dropout(ids))
        x = self.lstm(self.embedding_dropout(x), length)
        logits: Tensor = self.head(self.dropout(pool(x, length, self.pooling)))
        return logits


class VariableLengthLSTM(nn.Module):
    """An LSTM over padded rows, each read up to its own length, in both directions.

    It computes what `nn.LSTM` computes on a packed sequence (tested), and is several times as fast on a CPU,
    where oneDNN has no kernel for packed sequences: the backward direction is a forward LSTM over rows
    reversed within their length, so that padding comes last for both and reaches no token.
    """

    def __init__(self, size: int, hidden: int, *, layers: int = 1, bidirectional: bool = True) -> None:
        super().__init__()
        directions = 2 if bidirectional else 1
        sizes = [size] + [directions * hidden] * (layers - 1)
        self.ahead = nn.ModuleList(nn.LSTM(n, hidden) for n in sizes)
        self.back = nn.ModuleList(nn.LSTM(n, hidden) for n in sizes if bidirectional)
        self.output_size = directions * hidden

    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        """x [B, T, E], length int64 [B] → [B, T, D·H]; what stands beyond a row's length is meaningless."""
        x = x.transpose(0, 1)  # [T, B, E]: what the kernels take without a copy
        position = torch.arange(len(x), device=x.device)[:, None]
        last = length - 1
        mirror = torch.where(position <= last, last - position, position)[:, :, None]  # [T, B, 1]
        for i, layer in enumerate(self.ahead):
            y, _ = layer(x)
            if self.back:
                z, _ = self.back[i](x.gather(0, mirror.expand_as(x)))
                y = torch.cat([y, z.gather(0, mirror.expand_as(z))], dim=2)
            x = y
        return x.transpose(0, 1)


class WordDropout(nn.Module):
    """Replaces words by the unknown word, each with probability `p`, while training."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [B, T] → int64 [B, T]; padding stays."""
        if not self.training or self.p == 0:
            return ids
        hidden = (torch.rand(ids.shape, device=ids.device) < self.p) & (ids != PAD)
        return ids.masked_fill(hidden, UNKNOWN)


class FeatureDropout(nn.Module):
    """Dropout of whole features: one mask for all tokens of a row (Gal and Ghahramani, 2016)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, E] → [B, T, E]."""
        if not self.training or self.p == 0:
            return x
        kept = F.dropout(x.new_ones(len(x), 1, x.shape[2]), self.p)
        return x * kept


def pool(x: Tensor, length: Tensor, how: Pooling) -> Tensor:
    """x [B, T, N], length [B] → [B, N], or [B, 2N] for max+mean; over each row's own tokens."""
    beyond = (torch.arange(x.shape[1], device=x.device) >= length[:, None])[:, :, None]
    parts = []
    if "max" in how:
        # max, not amax, which spreads the gradient over ties: in 16 bits there are many
        parts.append(x.masked_fill(beyond, torch.finfo(x.dtype).min).max(1).values)
    if "mean" in how:
        parts.append(x.masked_fill(beyond, 0).sum(1) / length[:, None])
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]
