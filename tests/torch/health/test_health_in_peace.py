"""Healthy trainings, of which nothing is said."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from health_kit import Sequences, train
from torch import Tensor, nn

from castiron.health.snapshot import KINDS, ScaleHealth, rows_of
from castiron.policy import PrecisionPolicy, resolve
from castiron.torch.capability import device_capability
from castiron.torch.modules import describe
from castiron.torch.precision import apply


@pytest.mark.parametrize("preset", ["float32", "bf16-mixed", "fp16-mixed"])
def test_a_healthy_run_says_nothing(preset: str) -> None:
    model = Sequences()
    policy = PrecisionPolicy.preset(preset)
    plan, _ = resolve(policy, describe(model), device_capability("cpu"))
    precision = apply(model, plan)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = torch.randint(0, 50, (32, 20))
    labels = ids[:, 3] % 3

    def loss_of(i: int) -> Tensor:
        with precision.forward_context():
            return nn.functional.cross_entropy(model(ids).float(), labels) * (
                1024 if preset[:2] == "fp" else 1
            )

    scaling = ScaleHealth("dynamic", 1024) if preset == "fp16-mixed" else None
    monitor, found = train(model, optimizer, loss_of, policy, steps=41, scaling=scaling)
    assert [str(f) for f in found] == []
    snapshot = monitor.last
    assert snapshot is not None
    assert {kind for kind, _ in snapshot.groups} == set(KINDS)
    assert {"embedding", "lstm", "norm", "attention", "head"} <= set(snapshot.kind("activations"))
    assert {"embedding", "lstm", "norm", "head"} <= set(snapshot.kind("gradients"))
    assert len(snapshot.levels["lstm"]) == 20
    rows = rows_of(snapshot)
    assert len(rows) == len(snapshot.groups)
    assert sum(sum(r["exponents"]) for r in rows) == sum(s.size for s in snapshot.groups.values())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 16, num_layers=2, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0][:, -1])


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3),
        nn.GroupNorm(4, 16),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(16, 3),
    )


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
    return nn.Sequential(nn.Linear(8, 16), nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(192, 3))


ORDINARY: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)), (8,)),
    "convolutional": (convolutional, (3, 10, 10)),
    "gru": (Recurrent, (12, 8)),
    "transformer": (encoder, (12, 8)),
}


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
@pytest.mark.parametrize("preset", ["float32", "bf16-mixed"])
@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_models_are_left_in_peace(name: str, preset: str, optimizer: str) -> None:
    build, shape = ORDINARY[name]
    model = build()
    policy = PrecisionPolicy.preset(preset)
    plan, _ = resolve(policy, describe(model), device_capability("cpu"))
    precision = apply(model, plan)
    steps: torch.optim.Optimizer = (
        torch.optim.AdamW(model.parameters(), lr=1e-3)
        if optimizer == "AdamW"
        else torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    )
    x = torch.randn(32, *shape)
    labels = (x.flatten(1)[:, :3].argmax(1)).long()

    def loss_of(i: int) -> Tensor:
        with precision.forward_context():
            return nn.functional.cross_entropy(model(x).float(), labels)

    _, found = train(model, steps, loss_of, policy, steps=12)
    assert [str(f) for f in found] == []
