"""Time and memory of an audit: the recipe's LSTM, and a decoder of a billion parameters on meta."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import castiron
import castiron.torch.audit  # what is measured begins after the imports
import castiron.training.auditing
from castiron.policy import PrecisionPolicy, resolve
from castiron.torch.audit.continuous import Observer
from castiron.torch.modules import describe


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


def sentiment() -> nn.Module:
    """The model of the recipe lstm-sentiment, with a vocabulary of 8,000."""
    from castiron_recipes.lstm_sentiment.model import SentimentLSTM

    return SentimentLSTM(8000, 2, embedding=128, hidden=128)


def classes(outputs: Tensor, batch: Any) -> Tensor:
    """The loss of the sentiment model."""
    return F.cross_entropy(outputs, torch.zeros(len(outputs), dtype=torch.int64))


def next_word(outputs: Tensor, ids: Tensor) -> Tensor:
    """The loss of the decoder."""
    return F.cross_entropy(outputs.float().flatten(0, 1), ids.flatten())


def measure(name: str, model: nn.Module, batch: Any, loss: Any, policy: str) -> dict[str, Any]:
    """Audit a model twice, and say what it took."""
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    seconds, own = [], []
    for _ in range(2):
        started, began = time.perf_counter(), time.process_time()
        report = castiron.audit(model, batch, policy, loss=loss, optimizer=optimizer)
        seconds.append(round(time.perf_counter() - started, 2))
        own.append(round(time.process_time() - began, 2))
    return {
        "model": name,
        "policy": policy,
        "parameters": sum(p.numel() for p in model.parameters()),
        "first_s": seconds[0],
        "again_s": seconds[1],
        "first_cpu_s": own[0],
        "again_cpu_s": own[1],
        "peak_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "operations": report.operations,
        "found": sorted({f.code for f in report.findings}),
        "flops": {k: round(v, 4) for k, v in report.share().items()},
    }


def watched(rounds: int) -> dict[str, Any]:
    """A step of the sentiment model under the recorder of the continuous audit, relative to one without."""
    model, batch = sentiment(), example()
    plan, _ = resolve(PrecisionPolicy.preset("float32"), describe(model))
    report = castiron.audit(model, batch, plan=plan, loss=classes)
    observer = Observer(model, plan, report)

    def step() -> float:
        started = time.process_time()
        classes(model(*batch), batch).backward()
        return time.process_time() - started

    def seen() -> float:
        started = time.process_time()
        with observer.watching(batch, 0):
            loss = classes(model(*batch), batch)
            observer.backward_begins()
            loss.backward()
        observer.take()
        return time.process_time() - started

    step(), seen()
    pairs = [(step(), seen()) for _ in range(rounds)]
    return {"bare_ms": 1e3 * median(b for b, _ in pairs), "ratio": median(w / b for b, w in pairs)}


def example() -> tuple[Tensor, Tensor]:
    """A batch of 64 texts of 40 words."""
    return torch.ones(64, 40, dtype=torch.int64), torch.full((64,), 40)


PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "audit.md"
PAGE_TEXT = """# What the audit costs

`{command}`, {date}: {where}.

Seconds of `castiron.audit`, with the loss and the optimizer, once everything is imported: the first audit
of the process, and one after it; in brackets the seconds of the process itself, which other programs on the
machine lengthen less. Memory is the peak of the whole process so far, imports and all.

| model | policy | parameters | operations | first | again | peak memory |
|---|---|---:|---:|---:|---:|---:|
{rows}

- *lstm-sentiment* is the recipe's model, 64 texts of 40 words, embedding and hidden 128. Where a model is
  small, a real step on four rows is traced as well.
- *decoder on meta*: {layers} layers of 2,048 with causal attention and gated units, 8 texts of 1,024 words,
  built on the meta device. It never has numbers; nothing is computed.
- While a recipe trains, one step in 200 (`audit.every`) runs under a recorder: it took {ratio:.2f} times a
  step ({bare:.0f} ms), so {share:.2%} of the training. The other steps run as if there were no audit: it
  leaves no hook behind (tested).
"""


def page(results: list[dict[str, Any]], seen: dict[str, Any], command: str, layers: int) -> str:
    """docs/benchmarks/audit.md"""
    rows = [
        f"| {r['model']} | {r['policy']} | {r['parameters']:,} | {r['operations']:,} "
        f"| {r['first_s']:.2f} s ({r['first_cpu_s']:.2f}) | {r['again_s']:.2f} s ({r['again_cpu_s']:.2f}) "
        f"| {r['peak_MB']:,} MB |"
        for r in results
    ]
    where = f"{processor()}, {os.cpu_count()} cores, 1 thread, torch {torch.__version__}"
    return PAGE_TEXT.format(
        command=command,
        date=datetime.date.today(),
        where=where,
        rows="\n".join(rows),
        layers=layers,
        ratio=seen["ratio"],
        bare=seen["bare_ms"],
        share=(seen["ratio"] - 1) / 200,
    )


def processor() -> str:
    """The processor's name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or "a CPU"
    return next(
        (line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line), "a CPU"
    )


def main(argv: list[str] | None = None) -> None:
    """Both models under two policies."""
    parser = argparse.ArgumentParser(prog="bench.py audit", description=__doc__.split("\n\n")[0])
    parser.add_argument("--layers", type=int, default=14, help="of the decoder; 14 make a billion parameters")
    parser.add_argument("--rounds", type=int, default=7, help="of steps with and without the recorder")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(PAGE.parents[2])}")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    results = []
    for policy in ("float32", "bf16-mixed"):
        results.append(measure("lstm-sentiment", sentiment(), example(), classes, policy))
        print(json.dumps(results[-1]), flush=True)
    for policy in ("float32", "bf16-mixed"):
        with torch.device("meta"):
            model, batch = Decoder(layers=given.layers), torch.zeros(8, 1024, dtype=torch.int64)
        results.append(measure("decoder on meta", model, batch, next_word, policy))
        print(json.dumps(results[-1]), flush=True)
    seen = watched(given.rounds)
    print(json.dumps(seen))
    if given.write:
        command = " ".join(["python scripts/bench.py audit", *(argv or [])])
        PAGE.write_text(page(results, seen, command, given.layers), encoding="utf-8")


if __name__ == "__main__":
    main()
