"""The moving average of the weights."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from castiron.policy import PrecisionPolicy
from castiron.torch.ema import WeightAverage
from castiron.torch.updates import guard_updates


def test_the_average_follows_its_formula() -> None:
    p = nn.Linear(1, 1, bias=False)
    p.weight.data.fill_(0.0)
    average = WeightAverage(p, 0.5)
    expected = 0.0
    for i, value in enumerate((1.0, 3.0, -2.0, 8.0), start=1):
        p.weight.data.fill_(value)
        average.update()
        decay = min(0.5, (1 + i) / (10 + i))
        expected = decay * expected + (1 - decay) * value
        with average.swapped_in():
            assert p.weight.item() == pytest.approx(expected, rel=1e-6)
        assert p.weight.item() == value


def test_narrow_weights_are_averaged_wide() -> None:
    model = nn.Linear(1, 1, bias=False).bfloat16()
    model.weight.data.fill_(1.0)
    average = WeightAverage(model, 0.999)
    average.updates = 100_000
    model.weight.data.fill_(2.0)
    for _ in range(200):
        average.update()
    value = average.state_dict()["averages"]["weight"]
    assert value.dtype is torch.float32
    assert value.item() == pytest.approx(2 - 0.999**200, abs=1e-4)
    with average.swapped_in():
        assert model.weight.dtype is torch.bfloat16
        assert model.weight.item() == pytest.approx(value.item(), rel=4e-3)


def test_buffers_are_copied_or_averaged() -> None:
    for treatment, mean in (("copy", 4.0), ("average", 4.0 * (1 - 2 / 11))):
        model = nn.BatchNorm1d(1)
        average = WeightAverage(model, 0.9, buffers=treatment)  # type: ignore[arg-type]
        assert model.running_mean is not None
        assert model.num_batches_tracked is not None
        model.running_mean.fill_(4.0)
        model.num_batches_tracked.fill_(7)
        average.update()
        with average.swapped_in():
            assert model.running_mean.item() == pytest.approx(mean)
            assert model.num_batches_tracked.item() == 7


def test_weights_come_back_bit_for_bit_also_after_an_error() -> None:
    model = nn.Linear(4, 4)
    average = WeightAverage(model, 0.9)
    model.weight.data.normal_()
    average.update()
    own, identity = model.weight.detach().clone(), model.weight
    with contextlib.suppress(KeyError), average.swapped_in(), average.swapped_in():
        assert not torch.equal(model.weight, own)
        raise KeyError
    assert torch.equal(model.weight, own)
    assert model.weight is identity


def test_optimizers_with_masters_do_not_notice() -> None:
    model = nn.Linear(4, 4).bfloat16()
    optimizer = AdamW(model.parameters(), lr=1e-5)
    guard = guard_updates(optimizer, PrecisionPolicy.preset("bf16-true"))
    assert guard is not None
    average = WeightAverage(model, 0.9)
    masters = []
    for swap in (False, True):
        model(torch.ones(1, 4).bfloat16()).sum().backward()
        optimizer.step()
        average.update()
        if swap:
            with average.swapped_in():
                model.eval()
        masters.append(guard.master(model.weight).clone())  # type: ignore[union-attr]
    assert torch.equal(masters[1], guard.master(model.weight))  # type: ignore[arg-type]
    assert not torch.equal(masters[0], masters[1])


def test_the_state_round_trips() -> None:
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, 0.7)
    model.weight.data.fill_(9.0)
    average.update()
    other = WeightAverage(nn.BatchNorm1d(2), 0.7)
    other.load_state_dict(average.state_dict())
    assert other.updates == 1
    for kind in ("averages", "copies"):
        for name, value in average.state_dict()[kind].items():
            assert torch.equal(other.state_dict()[kind][name], value)
    with pytest.raises(ValueError, match=r"Received a state that differs in: bias"):
        WeightAverage(nn.Linear(2, 2), 0.7).load_state_dict(average.state_dict() | {"averages": {}})


def test_mistakes() -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="Expected a decay between 0 and 1"):
        WeightAverage(model, 1.0)
    with pytest.raises(ValueError, match="Expected averages in float32 or float64"):
        WeightAverage(model, 0.9, dtype=torch.bfloat16)
    average = WeightAverage(model, 0.9)
    with average.swapped_in(), pytest.raises(RuntimeError, match="the averages swapped in"):
        average.update()
