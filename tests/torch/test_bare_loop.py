"""The whole wing in a bare loop: every preset trains, twice the same, and ends where float32 does."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import AdamW

from castiron.policy import PrecisionPolicy, resolve
from castiron.torch import (
    apply,
    cast_inputs,
    clip_by_norm,
    describe,
    guard_updates,
    make_scaler,
    matmul_switches,
    seeded,
    to_loss_dtype,
)

PRESETS = ["float64", "float32", "bf16-mixed", "fp16-mixed", "bf16-true", "fp16-true"]


class Sentiment(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.lstm = nn.LSTM(16, 16, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(32)
        self.batch_norm = nn.BatchNorm1d(32)
        self.head = nn.Linear(32, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(self.embedding(ids))
        return self.head(self.batch_norm(self.norm(states).mean(1)))


def batches() -> list[dict[str, Any]]:
    """Which half of the vocabulary a sequence is of, for the most part."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(30):
        y = torch.randint(0, 2, (16,), generator=generator)
        ids = torch.randint(0, 15, (16, 6), generator=generator) + 15 * y[:, None]
        made.append({"x": ids, "y": y, "weight": torch.ones(16, dtype=torch.float64)})
    return made


@functools.cache
def train(preset: str, run: int = 0) -> tuple[float, ...]:
    policy = PrecisionPolicy.preset(preset)
    losses = []
    with seeded(17), matmul_switches(policy.matmul):
        model = Sentiment()
        plan, _ = resolve(policy, describe(model))
        precision = apply(model, plan)
        optimizer = AdamW(model.parameters(), lr=0.01, fused=True)
        guard_updates(optimizer, policy)
        scaler = make_scaler(policy.scaling)
        loss_dtype = getattr(torch, policy.loss)
        for batch in batches():
            batch = cast_inputs(batch, policy)
            with precision.forward_context("cpu"):
                logits = to_loss_dtype(model(batch["x"]), loss_dtype)
                loss = (F.cross_entropy(logits, batch["y"], reduction="none") * batch["weight"]).mean()
            assert loss.dtype is loss_dtype
            optimizer.zero_grad()
            with precision.backward_context("cpu"):
                scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            clip_by_norm(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
        assert all(p.isfinite().all() for p in model.parameters())
        assert all(b.isfinite().all() for b in model.buffers())
        # an overflow while the scale calibrates is expected; a run of them is not
        assert scaler.counts()["overflows"] <= 5
    return tuple(losses)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_learns(preset: str) -> None:
    losses = train(preset)
    assert losses[0] > 0.5
    assert losses[-1] < 0.2


@pytest.mark.parametrize("preset", PRESETS)
def test_the_same_run_twice_has_the_same_losses(preset: str) -> None:
    assert train(preset, 0) == train(preset, 1)


@pytest.mark.parametrize("preset", PRESETS[2:])
def test_narrow_presets_stay_near_float32(preset: str) -> None:
    wide, narrow = train("float32"), train(preset)
    assert sum(wide[-5:]) / 5 == pytest.approx(sum(narrow[-5:]) / 5, abs=0.05)
