from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from castiron.formats import number_format
from castiron.health.dynamics import (
    PARTS,
    accumulation_noise,
    dead_units,
    growth,
    parts_of,
    second_moment,
    update,
)
from castiron.health.rounding import round_to


def test_updates_that_bfloat16_loses() -> None:
    """AdamW at lr 6e-4 moves a weight of 1 by 6e-4, less than half of bfloat16's spacing below 1 (2**-9)."""
    found = update(np.ones(768), np.full(768, -6e-4), "bfloat16")
    assert (found.wanted, found.lost, found.lost_share) == (768, 768, 1.0)
    assert found.ratio == pytest.approx(6e-4)
    assert update(np.ones(768), np.full(768, -6e-4), "float32").lost == 0


@settings(max_examples=60, deadline=None)
@given(
    weights=hnp.arrays(np.uint16, 20).map(lambda b: b.view(ml_dtypes.bfloat16).astype(np.float32)),
    change=hnp.arrays(np.float32, 20, elements=st.floats(-10, 10, width=32)),
)
def test_lost_is_what_the_sum_rounds_back_to(weights: np.ndarray, change: np.ndarray) -> None:
    weights = np.nan_to_num(weights, posinf=1, neginf=1)
    weights = np.clip(weights, -1e4, 1e4).astype(ml_dtypes.bfloat16).astype(np.float32)
    exact = weights.astype(np.float64) + change
    same = exact.astype(ml_dtypes.bfloat16).astype(np.float64) == weights
    found = update(weights, change, "bfloat16")
    assert (found.wanted, found.lost) == (int((change != 0).sum()), int((same & (change != 0)).sum()))


def test_nothing_to_update() -> None:
    found = update(np.zeros(3), np.zeros(3), "bfloat16")
    assert (found.wanted, found.lost_share) == (0, 0)
    assert math.isnan(found.ratio)


def test_adams_second_moment() -> None:
    g = np.array([0, 1e-25, 1e-3, 1e25], np.float32)
    with np.errstate(over="ignore", under="ignore"):
        found = second_moment(0.1 * g, 0.001 * g * g)
    assert (found.moving, found.underflow, found.overflow, found.size) == (3, 1, 1, 4)
    assert (found.underflow_share, found.overflow_share) == (1 / 3, 1 / 4)
    empty = second_moment(np.zeros(0), np.zeros(0))
    assert (empty.underflow_share, empty.overflow_share) == (0, 0)


def test_growth_over_time() -> None:
    assert growth([1.5**t for t in range(30)]) == pytest.approx(1.5)
    assert growth([0.9**t for t in range(30)]) == pytest.approx(0.9)
    assert growth([2.0] * 10) == 1
    assert growth([0, 1.0, 2.0, 4.0, 8.0, math.inf]) == pytest.approx(2)
    assert growth([0.0, 1.0, 2.0, 3.0]) is None


def test_dead_units() -> None:
    values = np.ones((2, 3, 4))
    values[..., 1] = 0
    values[0, :, 2] = 0
    assert dead_units(values) == 1
    assert dead_units(values, axis=0) == 0
    assert dead_units(np.zeros((0, 4))) == 0


def test_the_parts_are_slices_in_their_order() -> None:
    x = np.arange(20.0).reshape(10, 2)
    parts = parts_of(x)
    assert parts.shape == (PARTS, 2)
    np.testing.assert_array_equal(parts[0], x[0] + x[1])  # ten rows in eight slices: the first two have two
    np.testing.assert_array_equal(parts[-1], x[-1])
    np.testing.assert_array_equal(parts_of(x.T, axis=0), parts)


@settings(max_examples=100, deadline=None)
@given(
    parts=hnp.arrays(np.float64, (PARTS, 5), elements=st.floats(-1e4, 1e4)),
    name=st.sampled_from(["float32", "bfloat16", "float16"]),
)
def test_accumulation_noise_is_within_its_bound(parts: np.ndarray, name: str) -> None:
    """Each order is wrong by at most γ Σ|x| (Higham 2002, section 4.2), as long as nothing is subnormal."""
    found = accumulation_noise(parts, name)
    terms = round_to(parts, name)
    exact = np.linalg.norm(terms.sum(0))
    if found is None:
        assert exact == 0 or not np.isfinite(exact) or name == "float16"
        return
    u = 2.0 ** -(number_format(name).fraction_bits + 1)
    gamma = (PARTS - 1) * u / (1 - (PARTS - 1) * u)
    assert found * exact <= 2 * gamma * np.linalg.norm(np.abs(terms).sum(0)) * (1 + 1e-9)


def test_accumulation_noise_where_parts_cancel() -> None:
    plain = np.full((PARTS, 3), 0.1)
    cancelling = np.concatenate([plain[:4] * 1000, plain[:4] * -987.0])
    assert (accumulation_noise(cancelling, "bfloat16") or 0) > 0.1
    assert (accumulation_noise(cancelling, "float32") or 1) < 1e-4
    assert accumulation_noise(np.full((PARTS, 2), 0.5), "bfloat16") == 0
    assert accumulation_noise(np.zeros((PARTS, 2)), "bfloat16") is None
    assert accumulation_noise(np.full((PARTS, 2), 6e4), "float16") is None
