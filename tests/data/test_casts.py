"""`cast` against a slow oracle that knows only fractions and the definition of rounding to nearest."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from castiron.data.casts import cast, loss_of
from castiron.formats import FORMATS, NumberFormat, number_format

FLOATS = ["float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"]
INTEGERS = ["int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"]


def nearest(value: Fraction, form: NumberFormat) -> Fraction | None:
    """The nearest number of a float format, ties to the even one; None where that is beyond its largest."""
    if value == 0:
        return value
    size = abs(value)
    exponent = math.floor(math.log2(size.numerator) - math.log2(size.denominator))
    while Fraction(2) ** exponent > size:
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= size:
        exponent += 1
    lowest = round(math.log2(form.smallest_normal or 1))
    step = Fraction(2) ** (max(exponent, lowest) - form.fraction_bits)
    rounded = round(size / step) * step  # Python rounds a Fraction half to even
    if rounded > Fraction(form.max):
        return None
    return rounded if value > 0 else -rounded


def verdict(value: float | int, form: NumberFormat) -> tuple[str, Fraction | None]:
    """exact, rounded or lossy, and the value after the cast (None: none that is finite)."""
    exact = Fraction(value)
    if form.kind == "bool":
        return ("exact", exact) if value in (0, 1) else ("lossy", Fraction(1))
    if form.is_integer:
        inside = form.min <= exact <= form.max and exact.denominator == 1
        return ("exact", exact) if inside else ("lossy", None)
    result = nearest(exact, form)
    if result == exact:
        return "exact", result
    if result is None or result == 0 or isinstance(value, int):
        return "lossy", result
    return "rounded", result


def check(values: np.ndarray, to: Any) -> None:
    form = number_format(to)
    result = cast(values, to)
    assert result.values.dtype == form.numpy_dtype
    assert result.values.shape == values.shape
    largest = Fraction(0)
    for i, value in enumerate(values.tolist()):
        if isinstance(value, bool):
            value = int(value)
        expected, number = verdict(value, form)
        got = "lossy" if result.lossy is not None and result.lossy[i] else None
        got = got or ("rounded" if result.rounded[i] else "exact")
        assert got == expected, f"{value!r} to {to}: {got}, oracle {expected}"
        after = result.values[i]
        if form.kind == "bool":
            assert int(after) == number
        elif form.is_integer:
            if number is not None:
                assert int(after) == number
        elif number is None:
            assert not np.isfinite(after)
        else:
            assert Fraction(float(after)) == number, f"{value!r} to {to}"
        if expected == "rounded":
            assert number is not None
            largest = max(largest, abs(number - Fraction(value)) / abs(Fraction(value)))
    assert result.largest_relative_error == pytest.approx(float(largest), rel=1e-6)
    assert result.n_exact + result.n_rounded + result.n_lossy == values.size


def near(form: NumberFormat) -> st.SearchStrategy[float]:
    """float64 values where this format is tricky: ties, neighbours of ties, limits, subnormals."""
    edges = [form.max, form.smallest_normal, form.smallest_subnormal, 1.0, form.max_exact_int]
    scale = st.sampled_from([float(e) for e in edges if e])
    part = st.integers(0, 4 * 2 ** (form.fraction_bits + 2)).map(
        lambda k: k * 2.0 ** -(form.fraction_bits + 2)
    )
    nudge = st.sampled_from([0.0, 2.0**-40, -(2.0**-40), 2.0**-52, -(2.0**-52)])
    sign = st.sampled_from([1.0, -1.0])
    made = st.builds(lambda s, p, n, g: g * s * (p * (1 + n)), scale, part, nudge, sign)
    return made.filter(math.isfinite)


@pytest.mark.parametrize("to", FLOATS)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_float64_to_float_formats(to: str, data: st.DataObject) -> None:
    one = st.one_of(st.floats(allow_nan=False, allow_infinity=False), near(FORMATS[to]))
    check(np.array(data.draw(st.lists(one, min_size=1, max_size=8)), dtype=np.float64), to)


@pytest.mark.parametrize("source", ["float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("to", FLOATS)
def test_every_bit_pattern_of_a_narrow_float(source: str, to: str) -> None:
    dtype = FORMATS[source].numpy_dtype
    if dtype.itemsize == 1:
        values = np.arange(256, dtype=np.uint8).view(dtype)
    elif dtype.itemsize == 2:
        values = np.arange(0, 2**16, 97, dtype=np.uint16).view(dtype)
    else:
        values = np.random.default_rng(1).integers(0, 2**32, 500, dtype=np.uint32).view(dtype)
    with np.errstate(all="ignore"):
        finite = np.isfinite(values.astype(np.float64))
    check(values[finite], to)


@pytest.mark.parametrize("to", [*INTEGERS, "bool"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_float64_to_integers(to: str, data: st.DataObject) -> None:
    form = FORMATS[to]
    around = st.sampled_from([float(form.min), float(form.max), 0.0, 1.0, 2.0**53, 2.0**63, 2.0**64])
    near_edge = st.builds(lambda e, d: e + d, around, st.sampled_from([0, 1, -1, 0.5, -0.5, 2048.0, -2048.0]))
    one = st.one_of(near_edge, st.floats(allow_nan=False, allow_infinity=False))
    check(np.array(data.draw(st.lists(one, min_size=1, max_size=8)), dtype=np.float64), to)


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("to", [*FLOATS, *INTEGERS, "bool"])
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_integers_to_everything(source: str, to: str, data: st.DataObject) -> None:
    info = FORMATS[source]
    low, high = int(info.min), int(info.max)
    powers = {s * (2**p + d) for p in range(65) for d in (-2, -1, 0, 1, 2) for s in (1, -1)}
    edges = sorted(v for v in powers if low <= v <= high)
    one = st.one_of(st.integers(low, high), st.sampled_from(edges))
    check(np.array(data.draw(st.lists(one, min_size=1, max_size=8)), dtype=source), to)


@example(to="bfloat16", value=1 + 2**-8 + 2**-40, expected=1 + 2**-7)
@example(to="float8_e4m3fn", value=1 + 2**-4 + 2**-40, expected=1 + 2**-3)
@example(to="float8_e4m3fn", value=2**-10 + 2**-50, expected=2**-9)
@example(to="float8_e5m2", value=1 + 2**-3 + 2**-40, expected=1.25)
@given(to=st.just("float16"), value=st.just(1 + 2**-11 + 2**-40), expected=st.just(1 + 2**-10))
def test_rounds_once(to: Any, value: float, expected: float) -> None:
    assert float(cast(np.array([value]), to).values[0]) == expected


@pytest.mark.parametrize(
    ("values", "to", "lossy"),
    [
        (np.array([16777216, 16777217]), "float32", [False, True]),
        (np.array([2048, 2049, 65504, 65520]), "float16", [False, True, False, True]),
        (np.array([256, 257]), "bfloat16", [False, True]),
        (np.array([2**53, 2**53 + 1]), "float64", [False, True]),
        (np.array([255, 256, -1]), "uint8", [False, True, True]),
        (np.array([1.0, 1.5, np.nan, np.inf, -0.0]), "int64", [False, True, True, True, False]),
        (np.array([0, 1, 2]), "bool", [False, False, True]),
        (np.array([1e39, 1e-46, 1e-40, 0.1]), "float32", [True, True, False, False]),
        (np.array([464.0, 464.1, np.inf, 1.0]), "float8_e4m3fn", [False, True, True, False]),
    ],
)
def test_known_losses(values: np.ndarray, to: Any, lossy: list[bool]) -> None:
    result = cast(values, to)
    assert (np.zeros(len(values), bool) if result.lossy is None else result.lossy).tolist() == lossy


def test_nan_and_infinity_stay_in_a_float_format() -> None:
    result = cast(np.array([np.nan, np.inf, -np.inf, 1.0]), "float16")
    assert (result.n_exact, result.n_rounded, result.n_lossy) == (4, 0, 0)
    assert np.isnan(result.values[0])
    assert result.values[1:3].tolist() == [np.inf, -np.inf]


def test_a_zero_keeps_its_sign() -> None:
    assert np.signbit(cast(np.array([-0.0]), "bfloat16").values[0])


def test_a_value_written_as_an_integer_may_not_change() -> None:
    values = np.array([16777217.0, 16777217.0])
    result = cast(values, "float32", integers=np.array([True, False]))
    assert (result.n_lossy, result.n_rounded) == (1, 1)
    assert loss_of(16777217.0, "float32", integer=True) == "integer"


def test_a_tolerance_bounds_rounding() -> None:
    result = cast(np.array([0.1, 0.5]), "bfloat16", tolerance=1e-4)
    assert result.lossy is not None
    assert result.lossy.tolist() == [True, False]
    assert loss_of(0.1, "bfloat16") == "tolerance"


def test_subnormals_are_counted() -> None:
    result = cast(np.array([1e-5, 1e-3]), "float16")
    assert (result.n_rounded, result.n_subnormal, result.n_lossy) == (2, 1, 0)
    assert result.largest_relative_error > FORMATS["float16"].spacing


@pytest.mark.parametrize(
    ("value", "to", "why"),
    [
        (1e39, "float32", "overflow"),
        (70000, "float16", "overflow"),
        (1e-50, "float32", "underflow"),
        (257, "bfloat16", "integer"),
        (1.5, "int8", "fraction"),
        (300, "uint8", "range"),
        (1e30, "int64", "range"),
        (float("inf"), "int32", "infinite"),
        (float("inf"), "float8_e4m3fn", "infinite"),
        (float("nan"), "int32", "nan"),
        (2, "bool", "bool"),
    ],
)
def test_why(value: float, to: Any, why: str) -> None:
    assert loss_of(value, to) == why


@pytest.mark.parametrize(
    "values",
    [np.array(["1"]), np.array([1, "N/A"], dtype=object), np.array([1j]), np.array(["2020"], "M8[Y]")],
)
def test_no_numbers_are_refused(values: np.ndarray) -> None:
    with pytest.raises(TypeError, match="Expected an array of numbers"):
        cast(values, "float32")


def test_the_same_format_costs_nothing() -> None:
    values = np.array([1.0, np.nan])
    assert cast(values, "float64").values is values


def test_empty_arrays_and_shapes() -> None:
    assert cast(np.zeros((0, 3)), "float32").values.shape == (0, 3)
    result = cast(np.full((2, 3), 0.1), "float16")
    assert result.values.shape == (2, 3)
    assert result.n_rounded == 6


@pytest.mark.parametrize("to", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("seen", [0.0, 1.0])
def test_odd_elements_are_found_in_every_block_of_a_large_array(to: Any, seen: float) -> None:
    """Once an error near the bound was seen, no larger one is looked for: the odd ones have to be found."""
    form = number_format(to)
    values = np.random.default_rng(1).standard_normal(200_000) + 3
    plain = cast(values, to, seen=seen)
    back = plain.values.astype(np.float64)
    assert plain.n_rounded == np.count_nonzero(back != values)
    assert plain.n_lossy == 0
    assert plain.ends == (back.min(), back.max())
    if not seen:
        largest = np.abs(back / values - 1).max()
        assert 0.99 * largest <= plain.largest_relative_error <= largest * (1 + 1e-6)

    smallest = form.smallest_subnormal or 0.0
    values[-3:] = smallest * 1.6, smallest / 4, form.max * 4
    odd = cast(values, to, seen=seen)
    assert odd.lossy is not None
    assert np.flatnonzero(odd.lossy).tolist() == [199_998, 199_999]
    assert odd.n_subnormal == 1
    assert odd.rounded[-3]
    assert odd.largest_relative_error == pytest.approx(0.25)
    assert odd.ends is None
