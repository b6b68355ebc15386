"""What is finite and what is not, for every kind of tensor; and the verdict on a step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from castiron.torch import transaction
from castiron.torch.finite import not_finite
from castiron.torch.guard import StepGuard

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
NAN = float("nan")
SIZES = (1, 100, 50_000)


def is_bad(*tensors: Tensor) -> bool:
    return bool(not_finite(tensors).item())


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite_is_seen_wherever_it_stands(
    dtype: torch.dtype, size: int, value: float
) -> None:
    for at in (0, size // 2, size - 1):
        tensor = torch.ones(size, dtype=dtype)
        assert not is_bad(tensor)
        tensor[at] = value
        assert is_bad(torch.ones(3), tensor)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_large_finite_values_raise_no_alarm(dtype: torch.dtype, size: int) -> None:
    assert not is_bad(torch.full((size,), torch.finfo(dtype).max, dtype=dtype))


@pytest.mark.parametrize("size", SIZES)
def test_infinities_that_cancel_in_a_sum_are_seen(size: int) -> None:
    tensor = torch.zeros(size + 1)
    tensor[0], tensor[-1] = float("inf"), float("-inf")
    assert is_bad(tensor)


def test_tensors_of_every_kind_are_looked_at() -> None:
    def sparse(index: list[int], values: list[float]) -> Tensor:
        return torch.sparse_coo_tensor(
            torch.tensor([index]), torch.tensor(values), (3,), check_invariants=True
        )

    assert is_bad(sparse([1, 1], [1.0, NAN]))
    assert is_bad(sparse([1, 1], [3e38, 3e38]))  # finite as they are stored, not when they are added up
    assert not is_bad(sparse([1], [1.0]))
    assert is_bad(torch.tensor([complex(0, float("inf"))]))
    assert is_bad(torch.tensor([[1.0, 2.0], [3.0, float("nan")]]).t()[:, 1:])
    assert not is_bad(torch.tensor([1, 2]), torch.empty(0), torch.tensor([True]))
    assert not is_bad()


@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_the_flag_is_what_isfinite_says(values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    assert is_bad(tensor) is not bool(tensor.isfinite().all())


def test_looking_changes_no_bit() -> None:
    tensors = [torch.randn(10).to(d) for d in FLOATS] + [torch.tensor([float("inf"), -0.0, 1e-45])]
    before = [t.clone() for t in tensors]
    not_finite(tensors)
    assert all(
        torch.equal(a, b) and torch.equal(a.signbit(), b.signbit())
        for a, b in zip(tensors, before, strict=True)
    )


def stepped(module: nn.Module, loss: Tensor, guard: StepGuard) -> None:
    guard.begin()
    guard.see_loss(loss)
    loss.backward()
    guard.see_gradients()


def test_a_verdict_names_what_is_not_finite() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    guard = StepGuard(module, ("loss", "gradients", "buffers"))
    stepped(module, module(torch.randn(4, 2)).sum(), guard)
    assert not guard.verdict().bad
    module.zero_grad()
    stepped(module, module(torch.full((4, 2), float("nan"))).sum(), guard)
    verdict = guard.verdict()
    assert verdict.bad
    assert verdict.seen["loss"] == ("micro-batch 0",)
    assert set(verdict.seen["buffers"]) == {"1.running_mean", "1.running_var"}
    assert "0.weight" in verdict.seen["gradients"]
    assert verdict.micro_batches == (0,)


def test_the_micro_batch_with_the_bad_loss_is_numbered() -> None:
    guard = StepGuard(nn.Linear(1, 1), ("loss",))
    guard.begin()
    for value in (1.0, 2.0, float("nan"), 3.0):
        guard.see_loss(torch.tensor(value))
    assert guard.verdict().micro_batches == (2,)


def test_a_mask_of_infinities_kept_as_a_buffer_is_meant_so() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))
    guard = StepGuard(module, ("buffers",))
    guard.begin()
    assert not guard.verdict().bad


def test_only_what_is_watched_counts() -> None:
    module = nn.Linear(2, 1)
    guard = StepGuard(module, ("gradients",))
    guard.begin()
    guard.see_loss(torch.tensor(float("nan")))
    guard.see_gradients()
    assert not guard.verdict().bad


def test_parameters_and_optimizer_state_are_watched_where_declared() -> None:
    module = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    guard = StepGuard(module, ("parameters", "optimizer"), [optimizer])
    guard.begin()
    assert not guard.verdict().bad
    optimizer.state[module.weight]["exp_avg_sq"][0, 0] = float("inf")
    with torch.no_grad():
        module.bias.fill_(float("nan"))
    seen = guard.verdict().seen
    assert seen == {"parameters": ("bias",), "optimizer": ("exp_avg_sq of weight",)}


@pytest.mark.parametrize(("value", "bad"), [(1e30, False), (float("inf"), True), (float("nan"), True)])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_the_norm_that_clips_tells_what_reading_every_gradient_tells(
    value: float, bad: bool, clip_norm: float | None
) -> None:
    model = nn.Linear(3, 2, bias=False)
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    policy = {"preset": "float32", "guard": {"response": "hold", "watch": ["gradients"]}}

    def loss(batch: torch.Tensor) -> torch.Tensor:
        model.weight.register_hook(lambda g: g.index_fill(0, torch.tensor(1), value))
        return model(batch).sum()

    with transaction(model, optimizer, policy, clip_norm=clip_norm) as step:
        outcome = step(loss, torch.ones(4, 3))
    assert outcome.committed is not bad
    assert torch.equal(model.weight.detach(), before) is bad
    if clip_norm is not None and not bad:
        assert torch.linalg.vector_norm(model.weight.detach() - before).item() == pytest.approx(
            1e-3, rel=0.01
        )
