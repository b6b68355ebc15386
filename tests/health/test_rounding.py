"""Rounding to a format: equal to ml_dtypes, bit for bit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from castiron.formats import number_format
from castiron.health.rounding import overflows_from, round_to, subnormal_below, underflows_to

FORMATS = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}
every_format = pytest.mark.parametrize("name", FORMATS)


def same(values: np.ndarray, name: str) -> None:
    with np.errstate(all="ignore"):
        theirs = values.astype(FORMATS[name]).astype(np.float64)
    ours = round_to(values, name)
    np.testing.assert_array_equal(ours, theirs)
    number = ~np.isnan(theirs)
    np.testing.assert_array_equal(np.signbit(ours[number]), np.signbit(theirs[number]))


@every_format
@settings(max_examples=100, deadline=None)
@given(bits=hnp.arrays(np.uint32, st.integers(0, 64)))
def test_any_pattern_of_float32(name: str, bits: np.ndarray) -> None:
    same(bits.view(np.float32), name)


@every_format
def test_a_million_patterns(name: str) -> None:
    drawn = np.random.default_rng(7).integers(0, 2**32, 1_000_000, dtype=np.uint64)
    same(drawn.astype(np.uint32).view(np.float32), name)


@every_format
def test_every_value_of_a_format_every_tie_and_their_neighbours(name: str) -> None:
    of = FORMATS[name]
    if name == "float32":
        codes = np.arange(0, 2**32 - 1, 65_521, dtype=np.uint64).astype(np.uint32)
    else:
        codes = np.arange(2 ** number_format(name).bits).astype(f"u{number_format(name).itemsize}")
    values = codes.view(of).astype(np.float32)
    values = np.unique(values[np.isfinite(values)])
    middles = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(np.float32)
    for x in (values, middles):
        same(x, name)
        same(np.nextafter(x, np.float32(np.inf)), name)
        same(np.nextafter(x, np.float32(-np.inf)), name)


@every_format
def test_special_values(name: str) -> None:
    largest = np.finfo(np.float32).max
    same(np.array([0.0, -0.0, np.inf, -np.inf, np.nan, largest, -largest, 1e-45, -1e-45], np.float32), name)


def test_float64_is_left_as_it_is() -> None:
    values = np.array([5e-324, 1.7976931348623157e308, -0.0])
    assert round_to(values, "float64") is not values
    np.testing.assert_array_equal(round_to(values, "float64"), values)


def test_float64_is_rounded_once() -> None:
    """By way of float32 it would be rounded twice, here to another neighbour."""
    value = 1 + 2.0**-8 + 2.0**-40  # a tie of bfloat16 and a trifle
    assert round_to(np.array([value]), "bfloat16")[0] == 1 + 2.0**-7


@every_format
def test_where_a_kind_begins(name: str) -> None:
    of = number_format(name)

    def rounded(value: float) -> float:
        return float(round_to(np.array([value]), name)[0])

    assert not np.isfinite(rounded(overflows_from(of)))
    assert rounded(np.nextafter(overflows_from(of), 0)) == of.max
    assert rounded(underflows_to(of)) == 0
    assert rounded(np.nextafter(underflows_to(of), 1)) == of.smallest_subnormal
    assert rounded(subnormal_below(of)) == of.smallest_normal
    assert rounded(np.nextafter(subnormal_below(of), 0)) < of.smallest_normal
