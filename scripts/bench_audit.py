"""Time and memory of an audit: the LSTM recipe's model, and a decoder of a billion parameters on meta.

    .venv/bin/python scripts/bench_audit.py            # both
    .venv/bin/python scripts/bench_audit.py --layers 4 # a smaller decoder

Prints one JSON line per model: seconds of the audit (imports done), peak memory of the process, operations.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import castiron


class Block(nn.Module):
    """A layer of a decoder: causal attention and a gated unit, each after an RMS norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_a, self.norm_b = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, 4 * width, bias=False), nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm_a(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        y = self.norm_b(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """A language model of decoder blocks."""

    def __init__(self, words: int = 32_000, width: int = 2048, layers: int = 14, heads: int = 16) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(2048, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        return self.head(self.norm(self.blocks(self.words(ids) + self.places(places))))


class Sentiment(nn.Module):
    """The LSTM recipe's model, in short."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(8000, 128)
        self.lstm = nn.LSTM(128, 128, batch_first=True, bidirectional=True)
        self.head = nn.Linear(256, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.words(ids))[0].amax(1))


def classes(outputs: Tensor, ids: Tensor) -> Tensor:
    """The loss of the sentiment model."""
    return F.cross_entropy(outputs.float(), torch.zeros(len(ids), dtype=torch.int64, device=ids.device))


def next_word(outputs: Tensor, ids: Tensor) -> Tensor:
    """The loss of the decoder."""
    return F.cross_entropy(outputs.float().flatten(0, 1), ids.flatten())


def measure(name: str, model: nn.Module, batch: Any, loss: Any, policy: str) -> None:
    """Audit a model, and print what it took."""
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    started = time.perf_counter()
    report = castiron.audit(model, batch, policy, loss=loss, optimizer=optimizer)
    seconds = time.perf_counter() - started
    record = {
        "model": name,
        "policy": policy,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(seconds, 2),
        "peak_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "operations": report.operations,
        "found": sorted({f.code for f in report.findings}),
        "flops": {k: round(v, 4) for k, v in report.share().items()},
    }
    print(json.dumps(record))


def main() -> None:
    """Both models under two policies."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=14, help="of the decoder; 14 make a billion parameters")
    layers = parser.parse_args().layers
    torch.set_num_threads(1)
    for policy in ("float32", "bf16-mixed"):
        measure("lstm", Sentiment(), torch.zeros(64, 40, dtype=torch.int64), classes, policy)
    for policy in ("float32", "bf16-mixed"):
        with torch.device("meta"):
            model, batch = Decoder(layers=layers), torch.zeros(8, 1024, dtype=torch.int64)
        measure("decoder on meta", model, batch, next_word, policy)


if __name__ == "__main__":
    main()
