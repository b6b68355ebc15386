"""The one place where numbers change their format, and where every change is noticed.

A cast is exact (no value changes), rounded (to the nearest value of the target format, ties to even) or
lossy (a value is no longer what it was): a finite number that overflows, a number that becomes zero, an
integer that changes, a fraction or a non-finite number into an integer. All of it is vectorised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from castiron.formats import DTypeName, NumberFormat, number_format

Loss = Literal[
    "overflow", "underflow", "integer", "fraction", "range", "infinite", "nan", "bool", "tolerance"
]
"""Why a cast is lossy."""

_BLOCK = 1 << 14
"""Numbers cast at a time: what is kept of them meanwhile fits a cache of 1 MiB."""

_FAR = {"float32": np.float32, "float16": np.float16}


@dataclass(frozen=True)
class CastResult:
    """Values in their new format, and what happened to them.

    `changed` and `lossy` are masks [same shape as values], or None where no element is set. Where a cast is
    lossy the value is the nearest that the format has (saturated for integers, 0 for NaN).
    """

    values: np.ndarray
    changed: np.ndarray | None
    lossy: np.ndarray | None
    largest_relative_error: float
    """Of the rounded elements: the largest |cast - value| / |value|."""
    n_subnormal: int
    """Rounded elements that fell among the target's subnormals, where fewer digits are kept."""

    @cached_property
    def n_lossy(self) -> int:
        return 0 if self.lossy is None else int(np.count_nonzero(self.lossy))

    @cached_property
    def n_rounded(self) -> int:
        changed = 0 if self.changed is None else int(np.count_nonzero(self.changed))
        return changed - self.n_lossy

    @cached_property
    def n_exact(self) -> int:
        return int(self.values.size) - self.n_rounded - self.n_lossy

    @property
    def rounded(self) -> np.ndarray:
        """Mask of the rounded elements."""
        if self.changed is None:
            return np.zeros(self.values.shape, dtype=bool)
        return self.changed if self.lossy is None else self.changed & ~self.lossy

    @property
    def exact(self) -> np.ndarray:
        """Mask of the elements that did not change."""
        return np.ones(self.values.shape, dtype=bool) if self.changed is None else ~self.changed


def cast(
    values: np.ndarray,
    to: DTypeName,
    *,
    integers: np.ndarray | None = None,
    tolerance: float | None = None,
    within: tuple[float, float] | None = None,
) -> CastResult:
    """Cast an array of numbers, and classify every element.

    Args:
        values: any shape; float, integer or bool dtype, those of ml_dtypes included.
        to: the target format.
        integers: mask of float elements that were written as integers; such an element is lossy, not
            rounded, if it changes. None: a float is a measurement, however large.
        tolerance: relative error beyond which rounding is lossy; None: no bound.
        within: the finite smallest and largest of the values, where they are known: it saves looking.

    NaN into a float format, and infinity into one that has it, are exact: whether they may be there is
    another question.

    Raises:
        TypeError: values are no numbers (object, text, complex, dates).
    """
    source = _number_kind(values)
    target = number_format(to)
    if values.dtype == target.numpy_dtype:
        return CastResult(values, None, None, 0.0, 0)
    with np.errstate(all="ignore"):
        if target.kind == "bool":
            return _to_bool(values)
        if source == "bool":
            return CastResult(values.astype(target.numpy_dtype), None, None, 0.0, 0)
        if target.is_integer:
            return _float_to_int(values, target) if source == "float" else _int_to_int(values, target)
        if source == "int":
            return _int_to_float(values, target)
        return _float_to_float(values, target, integers, tolerance, within)


def loss_of(value: Any, to: DTypeName, *, integer: bool = False) -> Loss:
    """Why this one value does not survive its (lossy) cast: for messages.

    Args:
        value: a Python number (int, float, bool).
        integer: whether a float was written as an integer.
    """
    target = number_format(to)
    if target.kind == "bool":
        return "bool"
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    if isinstance(value, float) and math.isinf(value):
        return "infinite"
    if target.is_integer:
        if isinstance(value, float) and value != math.floor(value):
            return "fraction" if target.min - 1 < value < target.max + 1 else "range"
        return "range"
    # The midpoint between the largest number and the one that would follow it: from there on it overflows.
    ulp = math.ldexp(target.spacing, math.frexp(target.max)[1] - 1)
    if abs(value) >= int(target.max) + int(ulp) // 2 if isinstance(value, int) else abs(value) > target.max:
        return "overflow"
    if value and abs(value) <= (target.smallest_subnormal or 0) / 2:
        return "underflow"
    if isinstance(value, int) or integer:
        return "integer"
    return "tolerance"


def _number_kind(values: np.ndarray) -> Literal["float", "int", "bool"]:
    kind, name = values.dtype.kind, values.dtype.name
    if kind == "b":
        return "bool"
    if kind in "iu":
        return "int"
    if kind == "f" or name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        return "float"
    raise TypeError(f"Expected an array of numbers. Received dtype {values.dtype}.")


def _to_bool(values: np.ndarray) -> CastResult:
    result = values.astype(bool)
    lossy = (values != 0) & (values != 1)
    return CastResult(result, *_masks(lossy, lossy), 0.0, 0)


def _masks(changed: np.ndarray, lossy: np.ndarray | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The masks, or None for one in which nothing is set."""
    if not changed.any():
        return None, None
    return changed, lossy if lossy is not None and lossy.any() else None


def _int_to_int(values: np.ndarray, target: NumberFormat) -> CastResult:
    dtype = target.numpy_dtype
    source = np.iinfo(values.dtype)
    # Bounds that the source can hold: comparing an int64 with 2**64 - 1 would go through float64.
    low, high = max(int(target.min), int(source.min)), min(int(target.max), int(source.max))
    lossy = (values < low) | (values > high)
    if not lossy.any():
        return CastResult(values.astype(dtype), None, None, 0.0, 0)
    return CastResult(np.clip(values, low, high).astype(dtype), lossy, lossy, 0.0, 0)


def _float_to_int(values: np.ndarray, target: NumberFormat) -> CastResult:
    x = values.astype(np.float64, copy=False)
    # For 64-bit targets max + 1 is a power of two and so exact in float64, max is not.
    low, end = float(target.min), float(target.max + 1)
    inside = (x >= low) & (x < end)
    whole = np.rint(x)
    lossy = ~(inside & (whole == x))
    if not lossy.any():
        return CastResult(x.astype(target.numpy_dtype), None, None, 0.0, 0)
    result = np.zeros(x.shape, dtype=target.numpy_dtype)
    in_range = (whole >= low) & (whole < end)
    result[in_range] = whole[in_range].astype(target.numpy_dtype)
    result[whole >= end] = int(target.max)
    result[whole < low] = int(target.min)
    return CastResult(result, lossy, lossy, 0.0, 0)


def _int_to_float(values: np.ndarray, target: NumberFormat) -> CastResult:
    if not values.size or max(-int(values.min()), int(values.max())) <= target.max_exact_int:
        return CastResult(values.astype(np.float64).astype(target.numpy_dtype), None, None, 0.0, 0)
    negative = values < 0
    unsigned = values.astype(np.uint64)
    magnitude = np.where(negative, ~unsigned + np.uint64(1), unsigned)
    # An integer is exact in p bits when its odd part is below 2**p; magnitude & -magnitude is the rest.
    lowest_bit = magnitude & (~magnitude + np.uint64(1))
    odd_part = magnitude // np.maximum(lowest_bit, np.uint64(1))
    lossy = odd_part >= np.uint64(2) ** np.uint64(target.fraction_bits + 1)
    if target.max < 2.0**64:
        lossy |= magnitude > np.uint64(int(target.max))
    if target.name == "float64":
        result = values.astype(np.float64)
    else:
        result = _round(_integers_to_odd(magnitude, negative), target)
    return CastResult(result, *_masks(lossy, lossy), 0.0, 0)


def _integers_to_odd(magnitude: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Integers as float64, rounded so that rounding once more cannot go wrong (see `_round`)."""
    spare = np.uint64(11)  # 64 bits of integer, 53 of significand
    high = (magnitude >> spare) << spare
    sticky = np.where(magnitude != high, np.uint64(1) << spare, np.uint64(0))
    wide = np.where(magnitude < np.uint64(2**53), magnitude, high | sticky)
    result = wide.astype(np.float64)
    return np.where(negative, -result, result)


def _float_to_float(
    values: np.ndarray,
    target: NumberFormat,
    integers: np.ndarray | None,
    tolerance: float | None,
    within: tuple[float, float] | None,
) -> CastResult:
    x = values.astype(np.float64, copy=False)
    known = within is not None and -target.max <= within[0] and within[1] <= target.max
    result, changed, largest, odd = _in_blocks(x, target, known)
    if largest is None:
        return CastResult(result, None, None, 0.0, 0)
    if not odd and integers is None and tolerance is None and largest <= target.spacing / 2 * (1 + 1e-6):
        return CastResult(result, changed, None, largest, 0)
    back = result if target.name == "float64" else result.astype(np.float64)
    return _examined(x, back, result, changed, target, integers, tolerance)


def _in_blocks(
    x: np.ndarray, target: NumberFormat, known: bool
) -> tuple[np.ndarray, np.ndarray, float | None, bool]:
    """The cast, what it changed, the largest relative error (None where nothing changed), and whether there
    is a NaN. In blocks that stay in the processor's cache: that halves the time.

    Args:
        x: float64, any shape.
        known: there is no NaN, and nothing overflows.
    """
    result = np.empty(x.shape, target.numpy_dtype)
    changed = np.empty(x.shape, bool)
    flat, casts, masks = x.reshape(-1), result.reshape(-1), changed.reshape(-1)
    size = min(_BLOCK, flat.size)
    wide, ratios = np.empty(size), np.empty(size)
    largest: float | None = None
    odd = False
    for start in range(0, flat.size, _BLOCK):
        stop = min(start + _BLOCK, flat.size)
        values, back, ratio = flat[start:stop], wide[: stop - start], ratios[: stop - start]
        mask = masks[start:stop]
        casts[start:stop] = _round(values, target)
        back[...] = casts[start:stop]
        np.not_equal(back, values, out=mask)
        if not mask.any():
            continue
        # The largest relative error from the ratio, a pass less than from the difference, and right to a
        # billionth. fmax and fmin pass over NaN: 0/0 where a zero stayed zero, and a NaN that stayed NaN.
        np.divide(back, values, out=ratio)
        error = max(float(np.fmax.reduce(ratio)) - 1, 1 - float(np.fmin.reduce(ratio)))
        if largest is None or not error <= largest:
            largest = error
        odd = odd or (not known and bool(np.isnan(back).any()))
    return result, changed, largest, odd


def _examined(
    x: np.ndarray,
    back: np.ndarray,
    result: np.ndarray,
    changed: np.ndarray,
    target: NumberFormat,
    integers: np.ndarray | None,
    tolerance: float | None,
) -> CastResult:
    """Element by element, for the rare arrays where rounding to nearest in the normal range is not all."""
    changed &= ~(np.isnan(x) & np.isnan(back))
    error = np.abs(back / x - 1)
    lossy = changed & (~np.isfinite(back) | (back == 0))
    if integers is not None:
        lossy |= changed & integers
    if tolerance is not None:
        lossy |= changed & (error > tolerance)
    rounded = changed & ~lossy
    smallest = target.smallest_normal or 0.0
    subnormal = int(np.count_nonzero(rounded & (np.abs(back) < smallest)))
    largest = float(error[rounded].max()) if rounded.any() else 0.0
    return CastResult(result, *_masks(changed, lossy), largest, subnormal)


def _round(x: np.ndarray, target: NumberFormat) -> np.ndarray:
    """float64 to the nearest of the target, ties to even, rounded once.

    ml_dtypes goes through float32 and so rounds twice: 1 + 2**-8 + 2**-40 becomes 1 in its bfloat16, where
    1 + 2**-7 is nearer. Rounding the first time to odd leaves the second time nothing to get wrong
    (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums").
    """
    direct = _FAR.get(target.name)
    if direct is not None or target.name == "float64":
        return x.astype(direct or np.float64, copy=False)
    near = x.astype(np.float32)
    bits = near.view(np.uint32)
    # Only a float32 that ends in zeros can lie half-way between two numbers of the target.
    tail = np.uint32(2 ** (22 - target.fraction_bits) - 1)
    doubtful = (bits & tail) == 0
    doubtful &= near != x
    if doubtful.any():
        doubtful &= ~np.isnan(x)
        # One step in the bit pattern is one step in magnitude, whatever the sign.
        away = np.abs(near.astype(np.float64)) > np.abs(x)
        bits[doubtful & away] -= 1
        bits[doubtful & ~away] += 1
    return near.astype(target.numpy_dtype)
