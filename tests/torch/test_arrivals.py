"""Gradients that are read as they come."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import castiron.torch.guard as guard
from castiron.diagnostics import NumericIncident
from castiron.torch import transaction


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the tensors that the guard reads for its verdict."""
    sizes: list[int] = []
    look = guard.look

    def spy(tensors: Iterable[Tensor]) -> tuple[bool, list[Tensor]]:
        tensors = list(tensors)
        sizes.extend(t.numel() for t in tensors)
        return look(tensors)

    monkeypatch.setattr(guard, "look", spy)
    return sizes


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(200, 200), nn.Linear(200, 1))


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1)


BATCH = {"x": torch.ones(4, 200)}


def test_large_gradients_are_not_read_again(read: list[int]) -> None:
    net = model()
    with transaction(net, sgd(net)) as step:
        assert step(lambda b: net(b["x"]).mean(), BATCH).committed
        assert step(lambda b: net(b["x"]).mean(), BATCH, BATCH).committed  # two micro-batches
    assert sorted(read) == [1, 1, 1, 1, 1, 200, 200, 200, 200]  # losses, a bias of one, small gradients
    assert not any(p._post_accumulate_grad_hooks for p in net.parameters())


@pytest.mark.parametrize(
    "kwargs",
    [
        {"clip_norm": 1.0},
        {"policy": {"compute": "float16", "scaling": {"kind": "static", "scale": 8.0}}},
    ],
)
def test_where_they_are_read_anyway_there_are_no_hooks(kwargs: dict[str, Any]) -> None:
    net = model()
    with transaction(net, sgd(net), **kwargs) as step:
        assert step(lambda b: net(b["x"]).mean(), BATCH).committed
        assert not any(p._post_accumulate_grad_hooks for p in net.parameters())


def test_a_bad_gradient_is_named(read: list[int]) -> None:
    net = model()
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(NumericIncident), transaction(net, sgd(net)) as step:
        # sqrt(0) has an infinite slope: the loss is finite, the gradients are not.
        step(lambda b: (net[1](net[0](b["x"]) * 0).mean() * 0).abs().sqrt(), BATCH)
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


def test_a_gradient_that_a_later_hook_changes_is_read_again(read: list[int]) -> None:
    net = model()
    with transaction(net, sgd(net), {"guard": {"response": "hold"}}) as step:
        assert step(lambda b: net(b["x"]).mean(), BATCH).committed

        def spoil(p: Tensor) -> None:
            assert p.grad is not None
            p.grad[0, 0] = torch.nan

        net[0].weight.register_post_accumulate_grad_hook(spoil)
        outcome = step(lambda b: net(b["x"]).mean(), BATCH)
    assert not outcome.committed
    assert 40_000 in read


def test_a_backward_outside_of_a_step_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    net = model()
    with transaction(net, sgd(net)) as step:
        assert step(lambda b: net(b["x"]).mean(), BATCH).committed
        monkeypatch.setattr("castiron.torch.arrivals.is_finite", lambda _: pytest.fail("looked"))
        net(BATCH["x"]).mean().backward()
