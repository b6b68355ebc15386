"""Loss scaling within bounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from castiron.diagnostics import CastironError, ConfigError
from castiron.policy.sections import DynamicScaling, NoScaling, StaticScaling
from castiron.torch.scaling import (
    DynamicScaler,
    NoScaler,
    StaticScaler,
    make_scaler,
    takes_verdict,
)
from castiron.torch.scaling_kernels import (
    multiply_and_check,
    multiply_and_check_plainly,
    unscale_gradients,
    update_scale,
    update_scale_plainly,
)

UNUSUAL = DynamicScaling(initial=96.0, min=6.0, max=768.0, growth=4.0, backoff=0.25, interval=3, patience=2)


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values or (1.0,)))


def one_step(scaler: NoScaler, optimizer: Optimizer, factor: float = 1.0) -> None:
    optimizer.zero_grad()
    p = optimizer.param_groups[0]["params"][0]
    scaler.scale((p * factor).sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


INF, NAN = float("inf"), float("nan")


def test_the_policy_chooses_the_scaler() -> None:
    assert [make_scaler(s).kind for s in (NoScaling(), StaticScaling(), UNUSUAL)] == [
        "none",
        "static",
        "dynamic",
    ]
    assert [make_scaler(s).active for s in (NoScaling(), StaticScaling())] == [False, True]


@pytest.mark.parametrize("scaling", [NoScaling(), StaticScaling(scale=8.0), UNUSUAL])
@pytest.mark.parametrize("fused", [False, True])
def test_all_scalers_take_the_very_step_of_an_unscaled_loss(scaling: Any, fused: bool) -> None:
    p, q = parameter(1.0, -2.0), parameter(1.0, -2.0)
    one_step(make_scaler(scaling), AdamW([p], lr=0.1, fused=fused), factor=3.0)
    (q * 3.0).sum().backward()
    AdamW([q], lr=0.1, fused=fused).step()
    assert torch.equal(p, q)


@pytest.mark.parametrize("bad", [INF, NAN, -INF])
@pytest.mark.parametrize("fused", [False, True])
def test_a_bad_gradient_changes_nothing_but_the_scale(bad: float, fused: bool) -> None:
    p = parameter(1.0, 2.0)
    optimizer = AdamW([p], lr=0.1, fused=fused)
    scaler = make_scaler(UNUSUAL)
    one_step(scaler, optimizer)
    before = p.detach().clone()
    state = {k: v.clone() for k, v in optimizer.state[p].items()}
    one_step(scaler, optimizer, factor=bad)
    assert torch.equal(p, before)
    assert all(torch.equal(v, state[k]) for k, v in optimizer.state[p].items())
    assert scaler.get_scale() == 24.0
    assert scaler.counts() == {"overflows": 1, "at_floor": 0}


def test_the_scale_stays_in_its_bounds() -> None:
    p = parameter(1.0)
    optimizer = SGD([p], lr=1e-3)
    scaler = make_scaler(UNUSUAL)
    seen = []
    for _ in range(5):
        one_step(scaler, optimizer, factor=INF)
        seen.append(scaler.get_scale())
    assert seen == [24.0, 6.0, 6.0, 6.0, 6.0]
    seen = []
    for _ in range(15):
        one_step(scaler, optimizer)
        seen.append(scaler.get_scale())
    assert seen[2::3] == [24.0, 96.0, 384.0, 768.0, 768.0]
    assert p.isfinite().all()


def test_a_scale_stuck_at_its_floor_is_found_after_patience() -> None:
    optimizer, scaler = SGD([parameter()], lr=0.1), make_scaler(UNUSUAL)
    for _ in range(3):  # 96 → 24 → 6, and the first overflow that meets the floor
        one_step(scaler, optimizer, factor=NAN)
    assert scaler.counts() == {"overflows": 3, "at_floor": 1}
    calibrating = scaler.check()
    assert calibrating is not None
    assert (calibrating.code, calibrating.severity) == ("S403", "info")
    assert calibrating.message == "gradients overflowed 3 times, and the loss scale backed off to 6"
    assert scaler.check() is None, "said once"
    one_step(scaler, optimizer, factor=NAN)
    found = scaler.check()
    assert found is not None
    assert (found.code, found.severity) == ("S401", "error")
    assert found.sentence() == (
        "the loss scale stands at its floor of 6, and gradients overflowed there 2 times in a row. "
        "Expected fewer than 2 overflows in a row at the floor. "
        "Received 2; no step was taken since at key 'precision.scaling'."
    )
    one_step(scaler, optimizer)
    assert scaler.counts() == {"overflows": 4, "at_floor": 0}
    assert scaler.check() is None
    assert make_scaler(NoScaling()).check() is None


def test_two_hundred_bad_steps_do_not_harm_the_next_good_one() -> None:
    """torch's own scale falls to 0, and the next good step gives NaN weights."""
    p = parameter(1.0)
    optimizer = SGD([p], lr=0.1)
    scaler = make_scaler(DynamicScaling())
    for _ in range(200):
        one_step(scaler, optimizer, factor=NAN)
    assert scaler.get_scale() == 1.0
    one_step(scaler, optimizer)
    assert p.item() == pytest.approx(0.9)


def test_optimizers_unscaled_together_share_one_verdict_and_one_update() -> None:
    a, b = parameter(1.0), parameter(1.0)
    first, second = SGD([a], lr=0.1, fused=True), SGD([b], lr=0.1)
    scaler = make_scaler(UNUSUAL)
    (scaler.scale(a * 1.0) + scaler.scale(b * INF)).sum().backward()
    scaler.unscale_(first, second)
    scaler.step(first)
    scaler.step(second)
    scaler.update()
    assert (a.item(), b.item()) == (1.0, 1.0), "both are held"
    assert scaler.get_scale() == 24.0, "and the scale falls once"


def test_gradients_of_both_optimizers_see_the_same_scale() -> None:
    """Lightning and accelerate update the scale between two optimizers of one step."""
    a, b = parameter(0.0), parameter(0.0)
    first, second = SGD([a], lr=1.0), SGD([b], lr=1.0)
    scaler = make_scaler(DynamicScaling(initial=4.0, interval=1))
    for _ in range(2):
        a.grad = b.grad = None
        scaler.scale(a + b).sum().backward()
        scaler.step(first)
        scaler.step(second)
        scaler.update()
    assert (a.item(), b.item()) == (-2.0, -2.0)


def test_float16_gradients_are_unscaled_in_float32() -> None:
    p = nn.Parameter(torch.ones(2, dtype=torch.float16))
    optimizer = SGD([p], lr=0.1)
    scaler = make_scaler(StaticScaling(scale=2.0**14))
    scaler.scale((p.float() * 1e-8).sum()).backward()  # 1e-8 is zero in float16; scaled it is not
    scaler.unscale_(optimizer)
    assert p.grad is not None
    assert p.grad.dtype is torch.float32
    assert p.grad[0].item() == pytest.approx(1e-8, rel=1e-3)


def test_sparse_gradients_are_unscaled() -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = SGD(embedding.parameters(), lr=1.0)
    scaler = make_scaler(StaticScaling(scale=4.0))
    scaler.scale(embedding(torch.tensor([1, 1, 2])).sum()).backward()
    scaler.unscale_(optimizer)
    assert embedding.weight.grad is not None
    assert embedding.weight.grad.to_dense()[:, 0].tolist() == [0, 2, 1, 0, 0]


def test_parameters_without_gradients_are_no_matter() -> None:
    p, q = parameter(1.0), parameter(1.0)
    optimizer = SGD([p, q], lr=0.1)
    scaler = make_scaler(UNUSUAL)
    scaler.scale(p.sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    scaler.update()  # nothing was unscaled since: nothing happens
    assert (round(p.item(), 6), q.item()) == (0.9, 1.0)


def test_a_scale_that_is_not_finite_steps_nothing() -> None:
    for scale in (0.0, INF, 1e-45):
        p = parameter(1.0)
        p.grad = torch.ones(1)
        assert unscale_gradients([p], torch.tensor(scale)).item() == 1.0


# --- mistakes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scaling", "name"),
    [
        (StaticScaling(scale=1e-40), "scale"),
        (DynamicScaling(min=1e-42), "min"),
        (DynamicScaling(max=1e300), "max"),
    ],
)
def test_scales_that_float32_cannot_invert_are_refused(scaling: Any, name: str) -> None:
    with pytest.raises(ConfigError, match="S402") as refused:
        make_scaler(scaling)
    found = refused.value.findings[0]
    assert found.message == f"the loss scale ({name}) cannot be held or inverted in float32"
    assert found.expected == "a scale between 1.17549e-38 and 3.40282e+38"


def test_the_order_of_a_step_is_checked() -> None:
    p = parameter(1.0)
    optimizer, scaler = SGD([p], lr=0.1), make_scaler(UNUSUAL)
    scaler.scale(p.sum()).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(CastironError, match="S405 the gradients of an optimizer are unscaled a second time"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(CastironError, match="S405 an optimizer steps a second time without update"):
        scaler.step(optimizer)
    scaler.update()
    with pytest.raises(CastironError, match="S405 the step of a scaled loss takes no closure"):
        scaler.step(optimizer, closure=lambda: 0.0)


# --- state ----------------------------------------------------------------------------------------------


def test_the_state_round_trips_with_values_that_are_not_defaults() -> None:
    optimizer, scaler = SGD([parameter()], lr=0.1), make_scaler(UNUSUAL)
    for factor in (INF, 1.0, 1.0):
        one_step(scaler, optimizer, factor)
    state = scaler.state_dict()
    assert state == {"kind": "dynamic", "scale": 24.0, "overflows": 1, "at_floor": 0, "good": 2}
    other = make_scaler(UNUSUAL)
    other.load_state_dict(state)
    assert other.state_dict() == state
    one_step(other, SGD([parameter()], lr=0.1))
    assert other.get_scale() == 96.0, "the third good step in a row"
    assert make_scaler(UNUSUAL).state_dict()["scale"] == 96.0, "before the first step too"


def test_a_restored_scale_is_kept_in_the_bounds_declared_now() -> None:
    scaler = make_scaler(DynamicScaling(max=2.0**10, initial=2.0**8))
    scaler.load_state_dict({"kind": "dynamic", "scale": 2.0**20, "overflows": 0, "at_floor": 0, "good": 0})
    assert scaler.get_scale() == 2.0**10
    with pytest.raises(ConfigError, match="S402"):
        scaler.load_state_dict({"kind": "dynamic", "scale": 0.0, "overflows": 9, "at_floor": 9, "good": 0})


def test_the_state_of_another_kind_is_refused() -> None:
    for scaling in (NoScaling(), StaticScaling()):
        with pytest.raises(ConfigError) as refused:
            make_scaler(scaling).load_state_dict(make_scaler(UNUSUAL).state_dict())
        assert refused.value.findings[0].sentence() == (
            "the saved state of the loss scaler is of another kind than the policy declares. "
            f"Expected scaling {scaling.kind}. Received scaling dynamic at key 'precision.scaling'."
        )
    for scaling in (NoScaling(), StaticScaling(scale=3.0)):
        scaler = make_scaler(scaling)
        scaler.load_state_dict(scaler.state_dict())
    assert scaler.get_scale() == 3.0


# --- kernels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_fallback_checks_and_multiplies_like_the_kernel(dtype: torch.dtype) -> None:
    for bad in (None, INF, -INF, NAN):
        results = []
        for check in (multiply_and_check, multiply_and_check_plainly):
            torch.manual_seed(1)
            gradients = [torch.randn(3, 2).to(dtype), torch.randn(5).to(dtype)]
            if bad is not None:
                gradients[1][2] = bad
            found = torch.zeros(())
            check(gradients, found, torch.tensor(0.25))
            results.append((gradients, found))
        torch.testing.assert_close(results[0], results[1], equal_nan=True)
        assert results[0][1].item() == (bad is not None)


def test_the_fallback_updates_like_the_kernel() -> None:
    states = []
    for update in (update_scale, update_scale_plainly):
        scale, good = torch.tensor(8.0), torch.zeros((), dtype=torch.int32)
        seen = []
        for found in (0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 1):
            update(scale, good, torch.tensor(float(found)), 2.0, 0.5, 3)
            seen.append((scale.item(), good.item()))
        states.append(seen)
        huge = torch.tensor(3e38)
        update(huge, torch.tensor(2, dtype=torch.int32), torch.tensor(0.0), 2.0, 0.5, 3)
        assert huge.item() == pytest.approx(3e38), "never grows to infinity"
    assert states[0] == states[1]


def test_the_wing_works_without_the_private_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "_amp_foreach_non_finite_check_and_unscale_")
    monkeypatch.delattr(torch, "_amp_update_scale_")
    p = parameter(1.0)
    optimizer, scaler = SGD([p], lr=0.1), make_scaler(UNUSUAL)
    one_step(scaler, optimizer, INF)
    assert p.item() == 1.0
    one_step(scaler, optimizer)
    assert p.item() == pytest.approx(0.9)
    assert scaler.get_scale() == 24.0


def test_which_optimizers_take_the_verdict_themselves() -> None:
    assert takes_verdict(AdamW([parameter()], fused=True))
    assert not takes_verdict(AdamW([parameter()], foreach=True))
    assert not takes_verdict(torch.optim.RMSprop([parameter()]))


@pytest.mark.gpu
def test_a_step_with_a_fused_optimizer_waits_for_nothing() -> None:
    p = nn.Parameter(torch.ones(4, device="cuda"))
    optimizer, scaler = AdamW([p], lr=0.1, fused=True), make_scaler(UNUSUAL)
    one_step(scaler, optimizer)
    torch.cuda.set_sync_debug_mode("error")
    try:
        one_step(scaler, optimizer)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_scalers_are_of_one_shape() -> None:
    public = {n for n in vars(NoScaler) if not n.startswith("_")}
    for cls in (StaticScaler, DynamicScaler):
        assert {n for n in dir(cls) if not n.startswith("_")} == public
