"""What several processes saw of one step, as one snapshot."""

from __future__ import annotations

import numpy as np
import pytest

from castiron.health.dynamics import SecondMoment, Update
from castiron.health.merging import of_all_processes
from castiron.health.snapshot import BackwardCast, LayerUpdate, Snapshot
from castiron.health.statistics import Statistics, measure


def numbers(size: int, seed: int) -> np.ndarray:
    values = (np.random.default_rng(seed).normal(size=size) * 1e-3).astype(np.float32)
    values[::5] = 0
    values[3], values[7] = np.inf, np.nan
    return values


def seen(values: np.ndarray, weights: float, *, peak: float, levels: tuple[float, ...]) -> Snapshot:
    made = measure(values)
    return Snapshot(
        3,
        groups={("activations", "a"): made, ("gradients", "a"): made, ("updates", "a"): made},
        peaks={("activations", "b"): ("float32", peak)},
        updates={"a": LayerUpdate(Update(10, 1, made.norm / weights), "float32", weights=weights)},
        moments={"a": SecondMoment(10, 2, 1, 20)},
        levels={"r": levels},
        noise={"a": peak},
        casts=(BackwardCast("float16", 10, 1, peak, peak / 8),),
    )


def same(a: Statistics, b: Statistics) -> bool:
    plain = [(s.size, s.zeros, s.nans, s.largest, s.smallest) for s in (a, b)]
    return plain[0] == plain[1] and (a.exponents == b.exponents).all() and a.rms == pytest.approx(b.rms)


def test_shares_of_a_tensor_are_measured_as_the_whole() -> None:
    whole = numbers(900, 1)
    parts = [seen(p, w, peak=w, levels=(w,)) for p, w in zip(np.split(whole, [100]), (3.0, 4.0), strict=True)]
    found, expected = of_all_processes(parts, shared=True), measure(whole)
    assert same(found.groups["gradients", "a"], expected)
    assert same(found.groups["activations", "a"], expected)
    for name, made in expected.what_if.items():
        other = found.groups["gradients", "a"].what_if[name]
        assert (other.scale, other.overflow) == (made.scale, made.overflow)
        assert other.underflow == pytest.approx(made.underflow)
        assert other.subnormal == pytest.approx(made.subnormal)
    update = found.updates["a"]
    assert (update.update.wanted, update.update.lost, update.weights) == (20, 2, 5.0)
    assert update.update.ratio == pytest.approx(expected.norm / 5.0)
    assert found.moments["a"] == SecondMoment(20, 4, 2, 40)
    assert found.peaks["activations", "b"] == ("float32", 4.0)
    assert found.casts == (BackwardCast("float16", 20, 2, 4.0, 0.375),)
    assert found.noise == {"a": 4.0}


def test_what_is_the_same_on_all_processes_is_that_of_the_first() -> None:
    first, second = (
        seen(numbers(200, n), 2.0, peak=1.0, levels=levels) for n, levels in ((1, (3.0, 1.0)), (2, (4.0,)))
    )
    found = of_all_processes([first, second], shared=False)
    assert found.groups["gradients", "a"] is first.groups["gradients", "a"]
    assert found.updates is first.updates
    assert found.groups["activations", "a"].size == 400  # of all rows
    assert found.levels["r"] == pytest.approx((12.5**0.5, 1.0))
    assert of_all_processes([first], shared=True) is first


def test_a_process_without_a_share_adds_nothing() -> None:
    first = seen(numbers(200, 1), 2.0, peak=1.0, levels=())
    nothing = Snapshot(3, updates={"a": LayerUpdate(Update(0, 0, float("nan")), "float32", weights=0.0)})
    found = of_all_processes([first, nothing], shared=True)
    assert same(found.groups["gradients", "a"], first.groups["gradients", "a"])
    assert found.updates["a"].update.ratio == pytest.approx(first.updates["a"].update.ratio)
    assert found.moments == first.moments
