"""On a GPU a step waits for nothing, and a bad one leaves nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from castiron.torch import WeightAverage, transaction

pytestmark = pytest.mark.gpu
NAN = float("nan")
Batch = dict[str, Tensor]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 1)
        )

    def loss(self, batch: Batch) -> Tensor:
        return F.mse_loss(self.net(batch["x"]).float(), batch["y"])


def batches(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    made = [(torch.randn(32, 16, generator=generator), torch.randn(32, 1, generator=generator))
            for _ in range(count)]  # fmt: skip
    return [{"x": x.cuda(), "y": y.cuda()} for x, y in made]


class Run:
    def __init__(self, steps: list[Batch], policy: Any, *, quiet_after: int | None = None) -> None:
        torch.manual_seed(7)
        self.model = Net().cuda()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2, fused=True)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)
        self.average = WeightAverage(self.model, 0.5)
        with transaction(
            self.model, self.optimizer, policy,
            schedulers=[self.schedule], averages=[self.average], clip_norm=1.0,
        ) as self.step:  # fmt: skip
            for number, batch in enumerate(steps):
                if number == quiet_after:
                    torch.cuda.set_sync_debug_mode("error")
                self.step(self.model.loss, batch)
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()

    def state(self) -> dict[str, Tensor]:
        found = {f"model {n}": t for n, t in self.model.state_dict().items()}
        found |= {f"average {n}": t for n, t in self.average.state_dict()["averages"].items()}
        for i, state in enumerate(self.optimizer.state.values()):
            found |= {f"optimizer {i} {k}": v for k, v in state.items() if isinstance(v, Tensor)}
        found["rate"] = torch.tensor(self.schedule.get_last_lr())
        found["random"] = torch.cuda.get_rng_state()
        return found


WATCHES = [
    ["loss", "gradients", "buffers"],
    ["loss", "gradients", "buffers", "activations"],
    ["loss", "gradients", "buffers", "parameters", "optimizer"],
]


@pytest.mark.parametrize("preset", ["float32", "bf16-mixed", "fp16-mixed"])
@pytest.mark.parametrize("watch", WATCHES, ids=["default", "activations", "parameters"])
def test_a_steady_step_synchronises_nothing(preset: str, watch: list[str]) -> None:
    scaling = {"scaling": {"kind": "dynamic", "initial": 1024.0}} if preset == "fp16-mixed" else {}
    run = Run(batches(8), {"preset": preset, "guard": {"watch": watch}, **scaling}, quiet_after=3)
    assert run.step.committed == 8


@pytest.mark.parametrize("preset", ["float32", "bf16-mixed"])
def test_a_bad_step_leaves_nothing_behind(preset: str) -> None:
    good = batches(6)
    bad = {**good[2], "x": good[2]["x"].clone()}
    bad["x"][3] = NAN
    plain = Run(good, preset)
    held = Run([*good[:2], bad, *good[2:5], bad, good[5]], {"preset": preset, "guard": {"response": "hold"}})
    assert held.step.held == 2
    assert held.step.committed == plain.step.committed == 6
    first, second = plain.state(), held.state()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
