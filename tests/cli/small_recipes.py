"""Two small recipes: rows through an MLP, sequences through a transformer."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from castiron.data import Field, Schema
from castiron.training import Recipe


class Made(Recipe):
    """Random numbers, with a label that follows from the first four of a row."""

    shape: tuple[int, ...] = (8,)
    sizes = (("train", 256), ("validation", 32), ("test", 32))

    def schema(self):
        return Schema.of(
            Field(name="x", role="feature", dtype="float32", shape=self.shape),
            Field(name="label", role="target", dtype="int64"),
        )

    def embedded_data(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        files = {}
        for split, rows in self.sizes:
            x = rng.standard_normal((rows, *self.shape)).astype(np.float32)
            label = (x.reshape(rows, -1)[:, :4].sum(1) > 0).astype(np.int64)
            files[split] = folder / f"{split}.npz"
            np.savez(files[split], x=x, label=label)
        return files

    def inputs(self, batch):
        return (batch["x"],)

    def loss(self, outputs, batch):
        return F.cross_entropy(outputs, batch["label"])


class Rows(Made):
    """An MLP on rows."""

    name = "small-mlp"

    def model(self):
        return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))


class Sequences(Made):
    """A transformer on sequences."""

    name = "small-transformer"
    shape = (12, 8)

    def model(self):
        return _Transformer()


class _Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))
