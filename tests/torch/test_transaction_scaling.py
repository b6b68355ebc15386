"""Loss scaling in a transaction: overflows that are expected, and a scale that collapses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from castiron.diagnostics import NumericIncident
from castiron.torch import transaction

Batch = dict[str, Tensor]
MODES = [False, True]
"""Whether the verdict comes late, as on a GPU."""


class Scaled(nn.Module):
    """Its gradient is one value per batch, as if float16 had computed it: infinite beyond 65,504."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def loss(self, batch: Batch) -> Tensor:
        half: Tensor = Half.apply(self.weight)  # type: ignore[no-untyped-call]
        return (half * batch["slope"]).sum()


class Half(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].half().float()


FP16 = {"kind": "dynamic", "initial": 2.0**16, "min": 1.0, "max": 2.0**20, "interval": 50, "patience": 5}


def fp16(response: str = "raise", holds: int = 1000) -> dict[str, Any]:
    budget = {"holds": holds, "window": 2000}
    return {"preset": "fp16-mixed", "scaling": FP16, "guard": {"response": response, "budget": budget}}


@pytest.mark.parametrize("late", MODES)
def test_two_thousand_steps_with_overflows_keep_the_scale_in_its_bounds(late: bool) -> None:
    model = Scaled()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, fused=True)
    scales, outcomes = [], []
    with transaction(model, optimizer, fp16(), late=late) as step:
        for number in range(2000):
            slope = 1e4 if number % 97 == 0 else 1e-3  # 1e4 needs a scale of 4 or less
            outcomes.append(step(model.loss, {"slope": torch.full((4,), slope)}))
            scales.append(step._scaler.get_scale())
    assert step.overflows > 20
    assert step.held == 0
    assert all(FP16["min"] <= s <= FP16["max"] for s in scales)  # type: ignore[operator]
    assert all(o.committed or o.skipped for o in outcomes)
    assert step.committed + step.overflows == 2000
    assert bool(model.weight.isfinite().all())


@pytest.mark.parametrize("late", MODES)
def test_an_expected_overflow_says_under_which_scale(late: bool) -> None:
    model = Scaled()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, fused=True)
    with transaction(model, optimizer, fp16(), late=late) as step:
        step(model.loss, {"slope": torch.ones(4)})
        outcome = step(model.loss, {"slope": torch.full((4,), 1e4)})
        assert not outcome.committed
        assert outcome.skipped == "gradients overflowed under a loss scale of 32768"
        assert outcome.finding is None
        assert step._scaler.get_scale() == 2.0**14


@pytest.mark.parametrize("late", MODES)
@pytest.mark.parametrize("response", ["raise", "hold"])
def test_a_collapse_of_the_scale_is_told_before_a_bad_update(response: str, late: bool) -> None:
    model = Scaled()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, fused=True)
    before, scales = model.weight.detach().clone(), []

    def train() -> None:
        with transaction(model, optimizer, fp16(response), late=late) as step:
            for _ in range(200):
                step(model.loss, {"slope": torch.full((4,), 1e6)})
                scales.append(step._scaler.get_scale())

    with pytest.raises(NumericIncident) as error:
        train()
    assert min(scales) >= FP16["min"]  # type: ignore[operator]
    codes = [f.code for f in error.value.findings]
    assert ("S401" in codes) == (response == "hold")
    assert len(scales) <= 16 + (FP16["patience"] if response == "hold" else 1) + late  # type: ignore[operator]
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("late", MODES)
def test_a_loss_that_is_not_finite_leaves_the_scale_alone(late: bool) -> None:
    model = Scaled()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, fused=True)
    with transaction(model, optimizer, fp16("hold"), late=late) as step:
        good = {"slope": torch.full((4,), 1e-3)}
        for _ in range(3):
            step(model.loss, good)
        step.settle()
        before = step._scaler.state_dict()
        step(model.loss, {"slope": torch.full((4,), float("nan"))})
        step.settle()
        assert step._scaler.state_dict() == before
        assert step.held == 1
