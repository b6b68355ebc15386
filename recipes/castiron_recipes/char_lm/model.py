"""The model: a decoder with RMSNorm, rotary positions, causal attention, and one table for input and output.

Shapes: B windows, T characters, D features, H heads of D / H features, V characters of the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CharDecoder(nn.Module):
    """Characters to logits of the next one, at every place."""

    def __init__(
        self, vocabulary: int, *, context: int, width: int, layers: int, heads: int, dropout: float
    ) -> None:
        """
        Args:
            context: largest T.
            width: D, a multiple of twice `heads`.
        """
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight  # tied: what a character means is what it is read off by
        for name, parameter in self.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5)
            elif name.endswith(("qkv.weight", "up.weight")):
                nn.init.normal_(parameter, std=0.02)
        angles = rotary_angles(context, width // heads)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    cos: Tensor
    sin: Tensor

    def forward(self, characters: Tensor) -> Tensor:
        """int64 [B, T] → [B, T, V]."""
        time = characters.shape[1]
        x = self.dropout(self.embedding(characters))
        for block in self.blocks:
            x = block(x, self.cos[:time], self.sin[:time])
        logits: Tensor = self.head(self.norm(x))
        return logits


class Block(nn.Module):
    """Attention to what came before, then two linear maps; each beside what it adds to."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm2 = nn.RMSNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[B, T, D] → [B, T, D]; cos and sin [T, D / 2H]."""
        rows, time, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(rows, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(rotated(q, cos, sin), rotated(k, cos, sin), v, is_causal=True)
        x = x + self.dropout(self.out(y.transpose(1, 2).reshape(rows, time, width)))
        result: Tensor = x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))
        return result


def rotary_angles(context: int, size: int) -> Tensor:
    """float64 [context, size / 2]: angle of each pair of features at each place (Su et al., 2021)."""
    frequencies = 10_000.0 ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    return torch.outer(torch.arange(context, dtype=torch.float64), frequencies)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs of features, one of each half, turned by their angles: [B, H, T, D / H], format kept."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)
