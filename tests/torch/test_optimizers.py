"""Optimizers, schedules and clipping from a config."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from castiron.torch.clipping import clip_by_norm, gradient_norm
from castiron.torch.optimizers import build_optimizer, can_fuse, choose_kernel, parameter_groups
from castiron.torch.schedules import build_schedule
from castiron.training.config import OptimizerConfig, ScheduleConfig
from castiron.training.schedules import factor_of


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "adagrad", "rmsprop"])
def test_every_optimizer_of_the_config_is_built_and_trains(name: Any) -> None:
    model = nn.Linear(3, 2)
    settings = OptimizerConfig(name=name, lr=0.02, weight_decay=0.01, eps=1e-7)
    optimizer = build_optimizer(model, settings)
    assert type(optimizer).__name__.lower() == name
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.02, 0.01)
    assert group.get("eps", 1e-7) == 1e-7
    fused = name != "rmsprop"
    assert (bool(group.get("fused")), bool(group.get("foreach"))) == (fused, not fused)
    before = model.weight.detach().clone()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.weight, before)


def test_fused_can_be_declined_and_is_where_it_does_not_exist() -> None:
    model = nn.Linear(2, 2)
    assert build_optimizer(model, OptimizerConfig(fused=False)).param_groups[0]["foreach"] is True
    assert can_fuse("adamw", "cpu", torch.float32)
    assert not can_fuse("rmsprop", "cpu", torch.float32)
    mixed = [nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1, dtype=torch.complex64))]
    assert choose_kernel("adamw", mixed, fused=True) == {"foreach": True}


def test_frozen_parameters_are_left_out_and_groups_are_taken_as_they_are() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert build_optimizer(model, OptimizerConfig()).param_groups[0]["params"] == [model.weight]
    groups = [{"params": [model.weight], "lr": 0.5}]
    assert build_optimizer(groups, OptimizerConfig()).param_groups[0]["lr"] == 0.5
    model.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="Expected parameters that require gradients"):
        build_optimizer(model, OptimizerConfig())


def test_biases_norms_and_embeddings_can_be_left_undecayed() -> None:
    model = nn.ModuleDict({"e": nn.Embedding(4, 2), "l": nn.Linear(2, 2), "n": nn.LayerNorm(2)})
    decayed, kept = parameter_groups(model, 0.1, decay_all=False)
    names = {id(p): n for n, p in model.named_parameters()}
    assert [names[id(p)] for p in decayed["params"]] == ["l.weight"]
    assert decayed["weight_decay"] == 0.1
    assert {names[id(p)] for p in kept["params"]} == {"e.weight", "l.bias", "n.weight", "n.bias"}
    assert kept["weight_decay"] == 0.0
    (one,) = parameter_groups(model, 0.1, decay_all=True)
    assert len(one["params"]) == 5


# --- schedules ------------------------------------------------------------------------------------------


def rates(steps: int, **settings: Any) -> list[float]:
    optimizer = SGD([nn.Parameter(torch.ones(1))], lr=2.0)
    schedule = build_schedule(optimizer, ScheduleConfig(**settings), steps)
    seen = []
    for _ in range(steps):
        seen.append(round(optimizer.param_groups[0]["lr"], 6))
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return seen


def test_schedules_end_where_they_should() -> None:
    assert rates(3) == [2.0, 2.0, 2.0]
    assert rates(5, name="linear") == [2.0, 1.5, 1.0, 0.5, 0.0]
    assert rates(5, name="linear", final=0.1) == [2.0, 1.55, 1.1, 0.65, 0.2]
    assert rates(3, name="cosine") == [2.0, 1.0, 0.0]
    assert rates(5, warmup=3) == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates(4, warmup=0.25) == [1.0, 2.0, 2.0, 2.0]
    assert rates(7, name="linear", warmup=3) == [
        0.5,
        1.0,
        1.5,
        2.0,
        pytest.approx(1.333333),
        pytest.approx(0.666667),
        0.0,
    ]
    up_and_down = rates(6, name="one-cycle", warmup=2)
    assert up_and_down.index(max(up_and_down)) == 2
    assert up_and_down[-1] == 0.0
    assert rates(1, name="cosine", warmup=5) == [1.0]


def test_steps_beyond_the_end_keep_the_last_rate() -> None:
    factor = factor_of(ScheduleConfig(name="linear", final=0.25), 4)
    assert [factor(i) for i in (3, 4, 100)] == [0.25, 0.25, 0.25]
    with pytest.raises(ValueError, match="Expected at least 1 step"):
        factor_of(ScheduleConfig(), 0)


# --- clipping -------------------------------------------------------------------------------------------


def with_gradient(*values: float, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    p = nn.Parameter(torch.zeros(len(values), dtype=dtype))
    p.grad = torch.tensor(values, dtype=dtype)
    return p


def grads(*parameters: nn.Parameter) -> list[list[float]]:
    return [p.grad.tolist() for p in parameters if p.grad is not None]


def test_the_global_norm_is_clipped_over_all_parameters() -> None:
    a, b, none = with_gradient(3.0, 0.0), with_gradient(4.0), nn.Parameter(torch.ones(1))
    assert gradient_norm([a, b, none]).item() == 5.0
    assert clip_by_norm([a, b, none], 1.0).item() == 5.0
    assert gradient_norm([a, b]).item() == pytest.approx(1.0, abs=1e-6)
    assert a.grad is not None
    assert a.grad[0].item() == pytest.approx(0.6)


def test_a_small_norm_is_left_alone_bit_for_bit() -> None:
    a = with_gradient(0.1, 0.3)
    clip_by_norm([a], 1.0)
    assert grads(a) == [torch.tensor([0.1, 0.3]).tolist()]


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_evidence_is_not_destroyed(bad: float) -> None:
    """torch's clip_grad_norm_ turns the others to 0 or NaN."""
    a, b = with_gradient(1.0, bad), with_gradient(3.0)
    assert not clip_by_norm([a, b], 1.0).isfinite()
    assert b.grad is not None
    assert b.grad.item() == 3.0
    assert a.grad is not None
    assert a.grad[0].item() == 1.0


def test_large_finite_gradients_are_clipped_and_not_zeroed() -> None:
    a, b = with_gradient(1e20), with_gradient(1e19)
    assert clip_by_norm([a, b], 1.0).item() == pytest.approx(1.005e20, rel=1e-3)
    assert grads(a, b)[0][0] == pytest.approx(0.995, abs=1e-3)
    assert grads(a, b)[1][0] == pytest.approx(0.0995, abs=1e-4)


def test_16_bit_gradients_are_summed_in_the_accumulate_dtype() -> None:
    a = with_gradient(*[300.0] * 100_000, dtype=torch.float16)
    assert gradient_norm([a]).item() == pytest.approx(300 * 100_000**0.5, rel=1e-3)
    assert gradient_norm([a]).dtype is torch.float32
    assert gradient_norm([a], torch.float64).dtype is torch.float64
    clip_by_norm([a], 100.0)
    assert gradient_norm([a]).item() == pytest.approx(100, rel=1e-3)


def test_formats_may_be_mixed_and_sparse_gradients_count() -> None:
    embedding = nn.Embedding(4, 1, sparse=True)
    embedding(torch.tensor([1, 1])).sum().backward()
    half = with_gradient(2.0, dtype=torch.bfloat16)
    wide = with_gradient(1.0, dtype=torch.float64)
    assert gradient_norm([embedding.weight, half, wide]).item() == 3.0
    clip_by_norm([embedding.weight, half, wide], 1.5)
    assert embedding.weight.grad is not None
    assert embedding.weight.grad.to_dense()[1].item() == pytest.approx(1.0)


def test_nothing_to_clip_and_a_limit_of_zero() -> None:
    assert clip_by_norm([nn.Parameter(torch.ones(1))], 1.0).item() == 0
    with pytest.raises(ValueError, match="Expected max_norm above 0"):
        clip_by_norm([], 0.0)
