"""The reference of every statistic, against its definition said otherwise, and the two ways to a what-if."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from castiron.formats import number_format
from castiron.health.rounding import round_to
from castiron.health.statistics import WHAT_IF, best_scale, edges, from_counts, measure, sample, snr_db

any_float32 = hnp.arrays(np.uint32, st.integers(0, 80)).map(lambda bits: bits.view(np.float32))
any_float64 = hnp.arrays(np.uint64, st.integers(0, 80)).map(lambda bits: bits.view(np.float64))


def test_a_small_tensor_by_hand() -> None:
    m = measure(np.array([[0.0, -0.0, 1.0], [-1.5, 3.0, 1e-40], [np.nan, np.inf, -np.inf]], np.float32))
    assert (m.size, m.zeros, m.nans, m.infinities, m.non_finite, m.live) == (9, 2, 1, 2, 3, 4)
    assert (m.subnormals, m.largest, m.smallest) == (1, 3.0, float(np.float32(1e-40)))
    assert m.exponents[0] == 3
    assert m.exponents[127] == 2
    assert m.exponents[128] == 1
    assert m.exponents.sum() == 9
    assert m.squares == pytest.approx(1 + 2.25 + 9)
    assert m.rms == pytest.approx(math.sqrt(12.25 / 6))
    assert m.norm == pytest.approx(3.5)
    assert m.share(m.zeros) == pytest.approx(2 / 9)


def test_subnormals_are_those_of_the_format_in_use() -> None:
    values = np.array([1.0, 6.2e-5, 6.1e-5, 6e-8, 0], np.float16)
    assert measure(values).subnormals == 2
    assert measure(values.astype(np.float32)).subnormals == 0


def test_headroom() -> None:
    m = measure(np.array([16384.0, 2.0**-10, 0], np.float16))
    assert m.headroom_up() == pytest.approx(math.log2(65504 / 16384))
    assert m.headroom_down() == 4
    assert m.headroom_up("float8_e4m3fn") == pytest.approx(math.log2(448 / 16384))
    assert m.headroom_up("float8_e4m3fn") < 0  # type: ignore[operator]
    assert m.headroom_down("float32") == 116
    nothing = measure(np.zeros(3, np.float32))
    assert (nothing.headroom_up(), nothing.headroom_down()) == (None, None)


def test_nothing_at_all() -> None:
    m = measure(np.zeros((0, 4), np.float32))
    assert (m.size, m.largest, m.rms, m.share(0)) == (0, 0, 0, 0)
    assert m.what_if["float16"].underflow == 0
    assert math.isnan(m.what_if["float16"].snr_db)


def test_what_if_of_gradients_near_1e_8() -> None:
    rng = np.random.default_rng(0)
    gradients = (rng.standard_normal(10_000) * 1e-9).astype(np.float32)
    made = measure(gradients).what_if
    assert made["float16"].underflow == 1
    assert made["float16"].scaled_underflow < 1e-3
    assert made["float16"].scaled_snr_db > 60
    assert made["bfloat16"].underflow == 0
    assert 45 < made["bfloat16"].snr_db < 60
    assert made["float8_e4m3fn"].scaled_snr_db < made["float16"].scaled_snr_db


def test_the_noise_of_rounding_is_that_of_ml_dtypes() -> None:
    x = np.random.default_rng(1).standard_normal(5000).astype(np.float32)
    rounded = x.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    expected = 10 * math.log10(np.sum(x.astype(float) ** 2) / np.sum((x - rounded) ** 2))
    assert snr_db(x, "float8_e4m3fn") == pytest.approx(expected)
    assert snr_db(np.array([1.0, 0.5]), "float16") == math.inf
    assert snr_db(np.array([1e-30]), "float16") == 0
    assert snr_db(np.array([1e-200, 3e-200]), "bfloat16", 600) > 20


def test_a_sample_is_every_nth_element() -> None:
    values = np.arange(100).reshape(10, 10)
    np.testing.assert_array_equal(sample(values, 100), np.arange(100))
    np.testing.assert_array_equal(sample(values, 99), np.arange(0, 100, 2))
    assert sample(np.zeros(0)).size == 0


@pytest.mark.parametrize("name", WHAT_IF)
@settings(max_examples=60, deadline=None)
@given(magnitude=st.floats(5e-324, 1.7e308))
def test_the_best_scale_is_the_largest_without_overflow(name: str, magnitude: float) -> None:
    k = best_scale(magnitude, number_format(name))
    mantissa, e = math.frexp(magnitude)
    for step, fits in ((k, True), (k + 1, False)):
        scaled = round_to(np.array([math.ldexp(mantissa, e + step)]), name)[0]
        assert bool(np.isfinite(scaled)) is fits


def counted(values: np.ndarray, name: str) -> None:
    """What follows from counts at the edges is what follows from rounding every element."""
    m = measure(values)
    made = m.what_if[name]
    x = np.abs(values.astype(np.float64))
    x = x[np.isfinite(x) & (x > 0)]
    plain = [int((x >= mark).sum()) for mark in edges(name)]
    scaled = [int((x >= mark).sum()) for mark in edges(name, made.scale)]
    again = from_counts(name, m.live, made.scale, plain, scaled, made.snr_db, made.scaled_snr_db)
    assert str(again) == str(made)  # NaN equals NaN here
    assert scaled[2] == 0


@pytest.mark.parametrize("name", WHAT_IF)
@settings(max_examples=60, deadline=None)
@given(values=any_float32)
def test_counts_say_what_rounding_says_float32(name: str, values: np.ndarray) -> None:
    counted(values, name)


@pytest.mark.parametrize("name", WHAT_IF)
@settings(max_examples=60, deadline=None)
@given(values=any_float64)
def test_counts_say_what_rounding_says_float64(name: str, values: np.ndarray) -> None:
    counted(values, name)


@pytest.mark.parametrize("name", WHAT_IF)
def test_counts_at_the_very_edges(name: str) -> None:
    marks = np.array([*edges(name), *edges(name, -900), *edges(name, 920), *edges(name, 1030)])
    near = np.concatenate([marks, np.nextafter(marks, 0), np.nextafter(marks, np.inf)])
    near = near[np.isfinite(near)]
    for values in (near, near[near < 1e30].astype(np.float32)):
        counted(values, name)
        for value in values:
            counted(np.array([value, 1.0]), name)


@settings(max_examples=60, deadline=None)
@given(values=any_float64)
def test_float64_has_its_own_exponents(values: np.ndarray) -> None:
    m = measure(values)
    assert len(m.exponents) == 2048
    assert int(m.exponents.sum()) == values.size
    live = np.abs(values[np.isfinite(values) & (values != 0)])
    assert m.live == live.size
    normal = live[live >= np.finfo(np.float64).smallest_normal]
    for b, n in zip(*np.unique(np.frexp(normal)[1] - 1 + 1023, return_counts=True), strict=True):
        assert m.exponents[b] == n


def test_quantiles_are_edges_of_binades() -> None:
    m = measure(np.array([0, 0, 1, 2, 4, 8], np.float32))
    assert [m.quantile(s) for s in (0, 0.25, 0.5, 0.99)] == [1, 2, 4, 8]
    assert measure(np.zeros(2, np.float32)).quantile(0.5) == 0
