"""Differences between two tensors: the definitions, on values worked out by hand and against NumPy."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from castiron.health.differences import (
    cosine,
    difference,
    expected_growth,
    farthest,
    first_parting,
    gamma,
    relative_norm,
    ulps,
    unit_roundoff,
)

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def test_the_norm_is_relative_and_does_not_overflow():
    assert relative_norm(np.array([3.0, 4.5]), np.array([3.0, 4.0])) == 0.1
    assert relative_norm(np.zeros(3), np.zeros(3)) == 0
    assert relative_norm(np.ones(3), np.zeros(3)) == math.inf
    assert relative_norm(np.array([1e300, 1.1e300]), np.array([1e300, 1e300])) == pytest.approx(
        0.1 / math.sqrt(2)
    )


def test_the_cosine():
    assert cosine(np.array([2.0, 0.0]), np.array([5.0, 0.0])) == 1
    assert cosine(np.array([0.0, 1.0]), np.array([5.0, 0.0])) == 0
    assert cosine(np.array([-1.0]), np.array([5.0])) == -1
    assert cosine(np.zeros(2), np.zeros(2)) == 1
    assert cosine(np.ones(2), np.zeros(2)) == 0


@pytest.mark.parametrize("name", DTYPES)
def test_a_unit_is_the_distance_to_the_next_number(name):
    dtype = DTYPES[name]
    x = np.random.default_rng(0).standard_normal(1000).astype(dtype)
    x = np.concatenate([x, np.array([1.0, 2.0, 65000.0 if name == "float16" else 1e30]).astype(dtype)])
    beyond = np.nextafter(x, np.array(np.inf, dtype) * np.sign(x)).astype(np.float64)
    assert set(ulps(beyond, x.astype(np.float64), name)) == {1.0}
    # below the smallest normal number the spacing stays
    tiny = np.array([0.0, float(ml_dtypes.finfo(dtype).smallest_subnormal)])
    assert ulps(tiny[::-1], tiny, name).tolist() == [1.0, 1.0]
    wide = np.random.default_rng(1).standard_normal(1000)
    assert ulps(wide.astype(dtype).astype(np.float64), wide, name).max() <= 0.5


def test_equal_rounded_parted():
    wide = np.random.default_rng(2).standard_normal(500)
    assert difference(wide, wide, "float64").step == "equal"
    rounded = wide.astype(ml_dtypes.bfloat16).astype(np.float64)
    found = difference(rounded, wide, "bfloat16")
    assert (found.step, found.excess) == ("rounded", 1.0)
    assert 0 < found.ulps_median < 0.5 >= found.ulps_max
    assert 0.2 * unit_roundoff("bfloat16") < found.relative_norm < unit_roundoff("bfloat16")
    rounded[7] *= 1 + 2.0**-7
    found = difference(rounded, wide, "bfloat16")
    assert found.step == "parted"
    assert found.excess > 1
    assert found.ulps_max > 0.5


def test_what_is_not_finite_is_counted_and_left_out():
    wide = np.array([1.0, 7e4, 3.0, np.nan])
    found = difference(np.array([1.0, np.inf, 3.0, np.nan]), wide, "float16")
    assert (found.not_finite, found.relative_norm, found.step) == (1, 0.0, "rounded")
    assert math.isnan(difference(np.array([np.nan]), np.ones(1), "float16").relative_norm)
    empty = difference(np.zeros(0), np.zeros(0), "float32")
    assert (empty.step, empty.relative_norm, empty.ulps_max) == ("equal", 0.0, 0.0)
    with pytest.raises(ValueError, match=r"Expected two tensors of one shape. Received \[2\] and \[3\]."):
        difference(np.zeros(2), np.zeros(3), "float32")


def test_the_first_to_part_and_the_farthest():
    wide = np.linspace(1, 2, 50)
    equal = difference(wide, wide, "float32")
    rounded = difference(wide.astype(np.float32), wide, "float32")
    near, far = (difference(wide * (1 + e), wide, "float32") for e in (1e-5, 1e-3))
    assert first_parting({"a": equal, "b": rounded, "c": near, "d": far}) == "c"
    assert farthest({"a": equal, "c": far, "d": near}) == "c"
    infinite = difference(np.where(wide > 1.9, np.inf, wide), wide, "float32")
    assert farthest({"c": far, "d": infinite}) == "d"
    assert (first_parting({"a": equal, "b": rounded}), farthest({"a": equal})) == (None, None)


def test_bounds():
    u = unit_roundoff("float32")
    assert u == 2.0**-24
    assert gamma(1024, u) == pytest.approx(1024 * u, rel=1e-4)
    assert gamma(512, unit_roundoff("bfloat16")) == math.inf
    assert expected_growth(1024, u) == 32 * u
    # a product summed one by one, of numbers without signs: the error that theory says
    random = np.random.default_rng(3)
    for n in (64, 1024):
        x, y = random.random((64, n), np.float32), random.random((n, 64), np.float32)
        total = np.zeros((64, 64), np.float32)
        for k in range(n):
            total += x[:, k : k + 1] * y[k]
        exact = x.astype(np.float64) @ y.astype(np.float64)
        error = relative_norm(total, exact)  # |x||y| is xy itself
        assert 0.1 * expected_growth(n, u) < error < expected_growth(n, u)
        assert np.max(np.abs(total - exact) / exact) < gamma(n, u)
