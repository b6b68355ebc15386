"""How updates reach narrow parameters: master copies, stochastic rounding, the optimizer's state."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from castiron.diagnostics import PlanError
from castiron.policy import PrecisionPolicy
from castiron.policy.sections import DynamicScaling
from castiron.torch.precision import Precision
from castiron.torch.scaling import make_scaler
from castiron.torch.updates import guard_of, guard_updates, release_updates

MASTER = PrecisionPolicy.preset("bf16-true")
STOCHASTIC = PrecisionPolicy.preset("bf16-true", updates={"master": None, "rounding": "stochastic"})
DIRECT = PrecisionPolicy.preset("bf16-true", updates={"master": None}, state="bfloat16")
WIDE_STATE = PrecisionPolicy.preset("bf16-true", updates={"master": None})

Make = Callable[[list[nn.Parameter]], Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "AdamW fused": lambda ps: AdamW(ps, lr=6e-4, fused=True),
    "AdamW foreach": lambda ps: AdamW(ps, lr=6e-4, foreach=True),
    "Adam": lambda ps: Adam(ps, lr=6e-4, amsgrad=True),
    "SGD": lambda ps: SGD(ps, lr=6e-4, momentum=0.9, nesterov=True),
    "Adagrad": lambda ps: Adagrad(ps, lr=6e-4),
    "RMSprop": lambda ps: RMSprop(ps, lr=6e-4),
}


def narrow(n: int = 768, value: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.full((n,), value, dtype=torch.bfloat16))


def steps(parameter: nn.Parameter, optimizer: Optimizer, number: int) -> None:
    for i in range(number):
        optimizer.zero_grad()
        parameter.backward(torch.full_like(parameter, 1.0 + 0.01 * (i % 3)))
        optimizer.step()


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_with_a_master_the_path_is_that_of_float32(name: str) -> None:
    wide = nn.Parameter(torch.ones(8))
    p = narrow(8)
    reference, optimizer = OPTIMIZERS[name]([wide]), OPTIMIZERS[name]([p])
    guard = guard_updates(optimizer, MASTER)
    assert guard is not None
    for i in range(50):
        for q, o in ((wide, reference), (p, optimizer)):
            o.zero_grad()
            q.grad = torch.full((8,), 1.0 + 0.25 * (i % 3)) if q is wide else None
            if q is p:
                p.backward(torch.full((8,), 1.0 + 0.25 * (i % 3), dtype=torch.bfloat16))
            o.step()
    master = guard.master(p)
    assert master is not None
    assert torch.equal(master, wide.detach())
    assert torch.equal(p, wide.detach().bfloat16())
    assert optimizer.param_groups[0]["params"] == [p]


def test_without_either_a_weight_of_one_does_not_move() -> None:
    p = narrow()
    optimizer = AdamW([p], lr=6e-4)
    assert guard_updates(optimizer, DIRECT) is None
    steps(p, optimizer, 100)
    assert (p == 1).all()


@pytest.mark.parametrize("policy", [MASTER, STOCHASTIC], ids=["master", "stochastic"])
def test_with_either_it_moves_as_far_as_in_float32(policy: PrecisionPolicy) -> None:
    p = narrow(4096)
    optimizer = AdamW([p], lr=6e-4, fused=True)
    guard_updates(optimizer, policy)
    steps(p, optimizer, 100)
    wide = nn.Parameter(torch.ones(1))
    reference = AdamW([wide], lr=6e-4)
    for _ in range(100):
        wide.grad = torch.ones(1)
        reference.step()
    assert p.float().mean().item() == pytest.approx(wide.item(), abs=2e-3)


def test_stochastic_rounding_draws_from_its_own_seed() -> None:
    results = []
    for seed, other in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(other)
        before = torch.get_rng_state()
        p = narrow(256)
        optimizer = AdamW([p], lr=6e-4)
        guard_updates(optimizer, STOCHASTIC, seed=seed)
        steps(p, optimizer, 10)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(p.detach().clone())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


# --- state ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "dtype"),
    [
        (MASTER, torch.float32),
        (STOCHASTIC, torch.float32),
        (WIDE_STATE, torch.float32),
        (PrecisionPolicy.preset("bf16-true", state="bfloat16"), torch.bfloat16),
        (DIRECT, torch.bfloat16),
    ],
    ids=["master", "stochastic", "wide state", "master, narrow state", "direct"],
)
def test_moments_are_kept_in_the_declared_format_also_when_resumed(
    policy: PrecisionPolicy, dtype: torch.dtype
) -> None:
    def moments(p: nn.Parameter, optimizer: Optimizer) -> set[torch.dtype]:
        guard = guard_of(optimizer)
        state = guard.state_of(p) if guard is not None else optimizer.state[p]
        return {v.dtype for k, v in state.items() if k != "step"}

    p = narrow(8)
    optimizer = AdamW([p], lr=0.1, fused=True)
    guard_updates(optimizer, policy)
    steps(p, optimizer, 2)
    assert moments(p, optimizer) == {dtype}
    q = narrow(8)
    resumed = AdamW([q], lr=0.1, fused=True)
    guard_updates(resumed, policy)
    resumed.load_state_dict(optimizer.state_dict())
    assert moments(q, resumed) == {dtype}


def test_narrow_state_of_wide_parameters() -> None:
    policy = PrecisionPolicy.preset("float32", state="bfloat16")
    p = nn.Parameter(torch.ones(8))
    optimizer = AdamW([p], lr=0.01)
    guard = guard_updates(optimizer, policy)
    assert guard is not None
    for _ in range(3):
        p.grad = torch.full((8,), 0.3)
        optimizer.step()
    assert {k: v.dtype for k, v in optimizer.state[p].items()} == {
        "step": torch.float32,
        "exp_avg": torch.bfloat16,
        "exp_avg_sq": torch.bfloat16,
    }
    assert p[0].item() == pytest.approx(1 - 0.03, abs=1e-3)
    resumed = AdamW([nn.Parameter(torch.ones(8))], lr=0.01)
    guard_updates(resumed, policy)
    resumed.load_state_dict(optimizer.state_dict())
    assert next(iter(resumed.state.values()))["exp_avg"].dtype is torch.bfloat16


@pytest.mark.parametrize("policy", [MASTER, STOCHASTIC, WIDE_STATE], ids=["master", "stochastic", "direct"])
@pytest.mark.parametrize("name", ["AdamW fused", "SGD"])
def test_saved_and_resumed_training_is_the_uninterrupted_one_bit_for_bit(
    policy: PrecisionPolicy, name: str
) -> None:
    p = narrow(64)
    optimizer = OPTIMIZERS[name]([p])
    guard_updates(optimizer, policy, seed=1)
    steps(p, optimizer, 7)
    file = io.BytesIO()
    torch.save({"model": p.detach(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    q = narrow(64, value=5.0)
    resumed = OPTIMIZERS[name]([q])
    guard_updates(resumed, policy, seed=99)
    with torch.no_grad():
        q.copy_(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    for parameter, o in ((p, optimizer), (q, resumed)):
        steps(parameter, o, 20)
    assert torch.equal(p, q)
    first, second = guard_of(optimizer), guard_of(resumed)
    assert first is not None
    assert second is not None
    if policy is MASTER:
        assert torch.equal(first.master(p), second.master(q))  # type: ignore[arg-type]


def test_the_state_of_an_optimizer_that_was_not_guarded_can_be_loaded() -> None:
    p = narrow(4)
    plain = AdamW([p], lr=0.1)
    p.grad = torch.ones_like(p)
    plain.step()
    q = nn.Parameter(p.detach().clone())
    optimizer = AdamW([q], lr=0.1)
    guard = guard_updates(optimizer, MASTER)
    optimizer.load_state_dict(plain.state_dict())
    steps(q, optimizer, 1)
    assert guard is not None
    assert guard.state_of(q)["exp_avg"].dtype is torch.float32


# --- what goes on outside of the step -------------------------------------------------------------------


def test_weights_that_somebody_else_wrote_are_taken_over() -> None:
    p = narrow(4)
    optimizer = SGD([p], lr=1e-4)
    guard = guard_updates(optimizer, MASTER)
    assert guard is not None
    steps(p, optimizer, 3)
    kept = guard.master(p)[0].item()  # type: ignore[index]
    with torch.no_grad():
        p[0] = 3.0  # a loaded checkpoint, say
    steps(p, optimizer, 1)
    assert p[0].item() == 3.0
    assert guard.master(p)[0].item() == pytest.approx(3.0 - 1e-4, abs=1e-6)  # type: ignore[index]
    assert guard.master(p)[1].item() == pytest.approx(kept - 1e-4, abs=1e-7), (  # type: ignore[index]
        "the others keep their low bits"
    )


def test_gradients_accumulate_in_float32() -> None:
    p = narrow(1, value=0.0)
    optimizer = SGD([p], lr=1.0)
    guard_updates(optimizer, MASTER)
    for _ in range(400):
        (p * 1.0).sum().backward()
    assert p.grad is not None
    assert p.grad.dtype is torch.float32
    assert p.grad.item() == 400  # in bfloat16: 256


def test_a_closure_sees_the_models_own_parameters() -> None:
    p = narrow(2)
    optimizer = AdamW([p], lr=0.1)
    guard_updates(optimizer, MASTER)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        assert optimizer.param_groups[0]["params"][0] is p
        loss = (p.float() ** 2).sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    second = optimizer.step(closure=closure)
    assert first.item() == 2.0
    assert second.item() < 2.0


def test_parameters_added_later_get_a_master_too() -> None:
    p, q = narrow(2), narrow(2)
    optimizer = SGD([p], lr=1e-4)
    guard = guard_updates(optimizer, MASTER)
    assert guard is not None
    optimizer.add_param_group({"params": [q]})
    steps(q, optimizer, 1)
    assert guard.master(q)[0].item() == pytest.approx(0.9999, abs=1e-6)  # type: ignore[index]


def test_a_step_that_raised_leaves_the_optimizer_usable() -> None:
    class Fragile(SGD):
        fail = False

        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            if self.fail:
                raise ZeroDivisionError
            return super().step(closure)

    p = narrow(2)
    optimizer = Fragile([p], lr=1e-2)
    guard_updates(optimizer, MASTER)
    steps(p, optimizer, 1)
    optimizer.fail = True
    with pytest.raises(ZeroDivisionError):
        steps(p, optimizer, 1)
    optimizer.fail = False
    steps(p, optimizer, 1)
    assert optimizer.param_groups[0]["params"] == [p]
    assert p[0].item() < 1


def test_scaling_and_masters_hold_a_bad_step_together(applied: Callable[..., Precision]) -> None:
    model = nn.Linear(4, 4)
    precision = applied(model, "fp16-true")
    optimizer = AdamW(model.parameters(), lr=1e-3, fused=True)
    guard = guard_updates(optimizer, precision.plan.policy)
    assert guard is not None
    scaler = make_scaler(DynamicScaling(initial=2.0**8))
    for factor in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        with precision.forward_context():
            loss = model(torch.ones(2, 4)).float().square().mean() * factor
        before = model.weight.detach().clone(), guard.master(model.weight).clone()  # type: ignore[union-attr]
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        after = model.weight.detach(), guard.master(model.weight)
        held = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))  # type: ignore[arg-type]
        assert held is (factor != 1.0)
    assert model.weight.dtype is torch.float16
    assert guard.state_of(model.weight)["step"].item() == 2


def test_released_optimizers_are_plain_again() -> None:
    p = narrow(2)
    optimizer = SGD([p], lr=1e-4)
    guard_updates(optimizer, MASTER)
    release_updates(optimizer)
    assert guard_of(optimizer) is None
    p.grad = None
    steps(p, copy.copy(optimizer), 1)
    assert (p == 1).all()


def test_float32_training_gets_no_hooks() -> None:
    optimizer = AdamW([nn.Parameter(torch.ones(2))])
    for preset in ("float32", "bf16-mixed", "fp16-mixed"):
        assert guard_updates(optimizer, PrecisionPolicy.preset(preset)) is None
    assert not optimizer._optimizer_step_pre_hooks


def test_an_optimizer_that_evaluates_its_closure_many_times_is_refused() -> None:
    with pytest.raises(PlanError, match="L210 LBFGS evaluates its closure several times a step"):
        guard_updates(torch.optim.LBFGS([narrow(2)]), MASTER)
