"""Small trainings with a monitor on them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from castiron.diagnostics import Finding
from castiron.health.snapshot import ScaleHealth, Snapshot
from castiron.policy import PrecisionPolicy
from castiron.torch.health.monitor import HealthMonitor


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[int], Tensor],
    policy: PrecisionPolicy | str = "float32",
    steps: int = 7,
    scaling: ScaleHealth | None = None,
    seen: Callable[[Snapshot], None] | None = None,
) -> tuple[HealthMonitor, list[Finding]]:
    policy = PrecisionPolicy.model_validate(policy).replace(health={"every": 1})
    monitor = HealthMonitor(model, optimizer, policy, histograms_every=1, on_snapshot=seen)
    found: list[Finding] = []
    for i in range(steps):
        with monitor.step() as health:
            optimizer.zero_grad()
            loss = loss_of(i)
            health.see_loss(loss)
            loss.backward()
            health.before_update(scaling)
            optimizer.step()
        found += monitor.news()
    monitor.remove()
    return monitor, found


def codes(found: list[Finding]) -> list[str]:
    return [f.code for f in found]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.lstm = nn.LSTM(16, 16, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.lstm(self.embedding(ids))[0])
        mask = torch.zeros(ids.shape[1], ids.shape[1]).masked_fill(
            torch.ones(ids.shape[1], ids.shape[1]).triu(1).bool(), float("-inf")
        )
        x = x + self.attention(x, x, x, attn_mask=mask.to(x.dtype), need_weights=False)[0]
        return self.head(x.mean(1))
