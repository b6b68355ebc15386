"""What a step changes is put back bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from castiron.torch.snapshot import Snapshot, drop_gradients


def test_buffers_generators_and_schedules_come_back() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    schedules = [
        torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10),
    ]
    snapshot = Snapshot(module, [optimizer], schedules)
    for _ in range(3):
        snapshot.take()
        buffers = {n: b.clone() for n, b in module.named_buffers()}
        states, rate = [s.state_dict() for s in schedules], optimizer.param_groups[0]["lr"]
        drawn = torch.rand(2).tolist()
        module(torch.randn(8, 3)).sum().backward()
        optimizer.step()
        for schedule in schedules:
            schedule.step()
        snapshot.restore()
        assert all(torch.equal(b, buffers[n]) for n, b in module.named_buffers())
        assert [s.state_dict() for s in schedules] == states
        assert optimizer.param_groups[0]["lr"] == rate
        assert torch.rand(2).tolist() == drawn


def tensors_of(optimizer: torch.optim.Optimizer) -> dict[tuple[int, str], torch.Tensor]:
    states = enumerate(optimizer.state.values())
    return {(i, k): v for i, s in states for k, v in s.items() if isinstance(v, torch.Tensor)}


@pytest.mark.parametrize(
    "kind", [torch.optim.Adam, torch.optim.SGD, torch.optim.Adagrad, torch.optim.RMSprop]
)
def test_an_optimizer_without_gradients_changes_nothing(kind: type[torch.optim.Optimizer]) -> None:
    module = nn.Linear(3, 2)
    options = {"weight_decay": 0.1} | ({"momentum": 0.9} if kind is torch.optim.SGD else {})
    optimizer = kind(module.parameters(), lr=0.1, **options)  # type: ignore[call-arg]
    module(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    before = [p.clone() for p in module.parameters()]
    state = {name: value.clone() for name, value in tensors_of(optimizer).items()}
    drop_gradients([optimizer])
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))
    assert all(torch.equal(tensors_of(optimizer)[n], v) for n, v in state.items())


def test_a_whole_snapshot_undoes_a_step_that_was_taken() -> None:
    module = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    snapshot = Snapshot(module, [optimizer], whole=True)

    def step() -> list[torch.Tensor]:
        module.zero_grad()
        module(torch.ones(4, 3)).sum().backward()
        optimizer.step()
        return [p.detach().clone() for p in module.parameters()]

    step()
    snapshot.take()
    once = step()
    snapshot.restore()
    again = step()
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    snapshot.take()
    step()
    snapshot.restore()
    assert float(optimizer.state[module.weight]["step"]) == 2
