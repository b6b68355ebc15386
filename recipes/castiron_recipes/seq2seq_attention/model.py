"""The model: an encoder that reads both ways, a decoder, and attention of each step to what was read.

Shapes: B rows, S symbols of the source, T of the target, E embedding, H hidden, V symbols of the target's
vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from castiron_recipes.lstm_sentiment.model import VariableLengthLSTM

PAD, UNKNOWN, END = 0, 1, 2


class AttentionSeq2Seq(nn.Module):
    """Symbols to symbols: global attention in the manner of Luong et al. (2015), their score *general*."""

    def __init__(
        self, source: int, target: int, *, embedding: int, hidden: int, dropout: float, longest: int
    ) -> None:
        """
        Args:
            source, target: sizes of the vocabularies, which begin with padding, unknown and end.
            hidden: H of the decoder, and of the encoder in each direction.
            longest: symbols that are written where no target is given, the end among them.
        """
        super().__init__()
        self.longest = longest
        self.source_embedding = nn.Embedding(source, embedding, padding_idx=PAD)
        self.encoder = VariableLengthLSTM(embedding, hidden)
        self.bridge = nn.Linear(2 * hidden, hidden)
        self.target_embedding = nn.Embedding(target, embedding, padding_idx=PAD)
        self.decoder = nn.LSTM(embedding, hidden, batch_first=True)
        self.attention = Attention(2 * hidden, hidden)
        self.combine = nn.Linear(3 * hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, target)

    def forward(self, source: Tensor, length: Tensor, target: Tensor | None = None) -> Tensor:
        """source int64 [B, S] padded with 0, length int64 [B] of 1 or more → logits [B, T, V].

        With a target, int64 [B, T], each step is told the symbols before it (teacher forcing). Without one it
        goes by what it wrote itself, the likeliest symbol at each of `longest` steps. Where a whole row is
        right by the first, it is by the second, symbol after symbol, and the other way round.
        """
        read, state = self.read(source, length)
        beyond = torch.arange(source.shape[1], device=source.device) >= length[:, None]
        first = source.new_full((len(source), 1), END)
        if target is not None:
            logits, _ = self.write(torch.cat([first, target[:, :-1]], 1), state, read, beyond)
            return logits
        symbol, steps = first, []
        for _ in range(self.longest):
            logits, state = self.write(symbol, state, read, beyond)
            steps.append(logits)
            symbol = logits.argmax(2)
        return torch.cat(steps, 1)

    def read(self, source: Tensor, length: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """→ what was read [B, S, 2H], and the decoder's first state, twice [1, B, H]."""
        read = self.encoder(self.dropout(self.source_embedding(source)), length)
        ahead, back = read.chunk(2, dim=2)
        # Each direction as it is when it has read all: at a row's last symbol, and at its first.
        rows = torch.arange(len(read), device=read.device)
        state = torch.tanh(self.bridge(torch.cat([ahead[rows, length - 1], back[:, 0]], 1)))[None]
        return read, (state, torch.zeros_like(state))

    def write(
        self, before: Tensor, state: tuple[Tensor, Tensor], read: Tensor, beyond: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The symbols before each step int64 [B, T], a state → logits [B, T, V], the state after them."""
        x, state = self.decoder(self.dropout(self.target_embedding(before)), state)
        x = torch.tanh(self.combine(torch.cat([self.attention(x, read, beyond), x], 2)))
        logits: Tensor = self.head(self.dropout(x))
        return logits, state


class Attention(nn.Module):
    """For each step a mean of what was read, weighted by how well it fits; padding has no weight."""

    def __init__(self, keys: int, queries: int) -> None:
        super().__init__()
        self.key = nn.Linear(keys, queries, bias=False)

    def forward(self, queries: Tensor, read: Tensor, beyond: Tensor) -> Tensor:
        """queries [B, T, H], read [B, S, N], beyond bool [B, S] → [B, T, N]."""
        scores = queries @ self.key(read).transpose(1, 2)
        # The format's own lowest number, not -inf: a softmax over nothing but -inf is NaN.
        scores = scores.masked_fill(beyond[:, None], torch.finfo(scores.dtype).min)
        return torch.softmax(scores, 2).to(read.dtype) @ read
