"""Rounding to a number format, written out: round to nearest, ties to even, as IEEE 754 and the float8
formats have it. What a device does is held against this, and this against `ml_dtypes`, bit for bit."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from castiron.formats import NumberFormat, number_format

Values = NDArray[Any]
Doubles = NDArray[np.float64]


def round_to(values: Values, name: str) -> Doubles:
    """The nearest number of a format, as float64.

    A value is a multiple of its format's spacing at its exponent, ``2**(max(e, e_min) - p)``, p the
    fraction bits and e_min the exponent of the smallest normal number (IEEE 754-2019, 3.3 and 4.3.1). What
    rounds to more than the largest number becomes infinite; NaN in float8_e4m3fn, which has no infinity
    (Micikevicius et al. 2022, "FP8 Formats for Deep Learning", without saturation). The sign of a zero is
    kept.

    Args:
        values: real numbers of any shape; float64 or what it holds exactly.
        name: a floating-point format of `castiron.formats`.
    """
    to = number_format(name)
    with np.errstate(invalid="ignore"):  # signalling NaN
        x = values.astype(np.float64)
    if to.name == "float64":
        return x
    with np.errstate(all="ignore"):
        exponent = np.frexp(x)[1] - 1
        # two steps: a spacing of float64's own smallest subnormals has no finite inverse
        step = np.maximum(exponent, lowest_exponent(to)) - to.fraction_bits
        rounded = np.ldexp(np.rint(np.ldexp(x, -step)), step)
        over = np.abs(rounded) > to.max
    rounded = np.where(np.isfinite(x), rounded, x)
    beyond = np.copysign(np.inf if to.has_infinity else np.nan, x)
    return np.where(over | (np.isinf(x) & (not to.has_infinity)), beyond, rounded)


def lowest_exponent(of: NumberFormat) -> int:
    """The exponent of a format's smallest normal number: -14 for float16."""
    return 2 - (1 << (of.exponent_bits - 1))


@functools.cache
def highest_exponent(of: NumberFormat) -> int:
    """The exponent of a format's largest number: 15 for float16."""
    return int(np.frexp(of.max)[1]) - 1


def overflows_from(of: NumberFormat) -> float:
    """The smallest magnitude that rounds to more than the largest number: half a spacing above it.

    In float8_e4m3fn the largest number is even, so the tie goes down to it, and the first that overflows is
    the next float64; in all others the tie goes up.
    """
    tie = of.max + 2.0 ** (highest_exponent(of) - of.fraction_bits - 1)
    return tie if of.has_infinity else float(np.nextafter(tie, np.inf))


def underflows_to(of: NumberFormat) -> float:
    """The largest magnitude that rounds to zero: half the smallest subnormal, a tie that goes to even."""
    assert of.smallest_subnormal is not None
    return of.smallest_subnormal / 2


def subnormal_below(of: NumberFormat) -> float:
    """Magnitudes below this round to less than the smallest normal number: half a spacing under it."""
    assert of.smallest_normal is not None
    assert of.smallest_subnormal is not None
    return of.smallest_normal - of.smallest_subnormal / 2
