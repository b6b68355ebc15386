"""The one place where numbers change their format, and where every change is noticed.

A cast is exact (no value changes), rounded (to the nearest value of the target format, ties to even) or
lossy (a value is no longer what it was): a finite number that overflows, a number that becomes zero, an
integer that changes, a fraction or a non-finite number into an integer. All of it is vectorised.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from castiron.formats import DTypeName, NumberFormat, number_format

Loss = Literal[
    "overflow", "underflow", "integer", "fraction", "range", "infinite", "nan", "bool", "tolerance"
]
"""Why a cast is lossy."""

_BLOCK = 1 << 16
"""Numbers cast at a time: what is kept of them meanwhile fits a cache of 1 MiB."""

_SOME = 1 << 13
"""Numbers whose errors are computed at a time, until one is large enough."""
_NEAR = 0.99
"""Rounding errs by half a spacing at most. Once an error comes this near, no larger one is looked for."""


@dataclass(frozen=True)
class CastResult:
    """Values in their new format, and what happened to them.

    `changed` and `lossy` are masks [same shape as values], or None where no element is set. Where a cast is
    lossy the value is the nearest that the format has (saturated for integers, 0 for NaN).
    """

    values: np.ndarray
    lossy: np.ndarray | None = None
    n_changed: int = 0
    mask: Callable[[], np.ndarray] | None = None
    """What makes `changed`, where anything is: mostly nobody asks which elements are rounded."""
    largest_relative_error: float = 0.0
    """Of the rounded elements: the largest |cast - value| / |value|, or one that is less by 1 % at most
    (less than that where `seen` said that there is no need to look)."""
    n_subnormal: int = 0
    """Rounded elements that fell among the target's subnormals, where fewer digits are kept."""
    ends: tuple[float | int, float | int] | None = None
    """Smallest and largest of `values`, where the cast has looked and all are finite."""

    @cached_property
    def changed(self) -> np.ndarray | None:
        return None if self.mask is None else self.mask()

    @cached_property
    def n_lossy(self) -> int:
        return 0 if self.lossy is None else int(np.count_nonzero(self.lossy))

    @cached_property
    def n_rounded(self) -> int:
        return self.n_changed - self.n_lossy

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
    seen: float = 0.0,
    out: np.ndarray | None = None,
) -> CastResult:
    """Cast an array of numbers, and classify every element.

    Args:
        values: any shape; float, integer or bool dtype, those of ml_dtypes included.
        to: the target format.
        integers: mask of float elements that were written as integers; such an element is lossy, not
            rounded, if it changes. None: a float is a measurement, however large.
        tolerance: relative error beyond which rounding is lossy; None: no bound.
        seen: the largest relative error of the values before these: it saves looking for a smaller one.
        out: room for floats that become other floats, or for values that have the format already, of their
            shape and the target's dtype; the result has another array where it could not be used.

    NaN into a float format, and infinity into one that has it, are exact: whether they may be there is
    another question.

    Raises:
        TypeError: values are no numbers (object, text, complex, dates).
    """
    source = _number_kind(values)
    target = number_format(to)
    if values.dtype == target.numpy_dtype:
        return CastResult(values) if out is None else _copied(values, out)
    with np.errstate(all="ignore"):
        if target.kind == "bool":
            return _to_bool(values)
        if source == "bool":
            return CastResult(values.astype(target.numpy_dtype))
        if target.is_integer:
            return _float_to_int(values, target) if source == "float" else _int_to_int(values, target)
        if source == "int":
            return _int_to_float(values, target)
        return _float_to_float(values, target, integers, tolerance, seen, out)


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


def _copied(values: np.ndarray, out: np.ndarray) -> CastResult:
    """The same values in their new place. In blocks that stay in the processor's cache while their ends are
    looked for: memory is read once."""
    if values.dtype.kind not in "iuf" or values.dtype.itemsize < 4:
        return CastResult(values)
    flat, room = values.reshape(-1), out.reshape(-1)
    lows, highs = [], []
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        room[start : start + _BLOCK] = block
        lows.append(np.minimum.reduce(block))
        highs.append(np.maximum.reduce(block))
    return CastResult(out, ends=_ends(lows, highs))


def _to_bool(values: np.ndarray) -> CastResult:
    return _lossy_only(values.astype(bool), (values != 0) & (values != 1))


def _lossy_only(values: np.ndarray, lossy: np.ndarray) -> CastResult:
    """Of a cast that is exact or lossy, never rounded."""
    count = int(np.count_nonzero(lossy))
    return CastResult(values, lossy, count, lambda: lossy) if count else CastResult(values)


def _int_to_int(values: np.ndarray, target: NumberFormat) -> CastResult:
    dtype = target.numpy_dtype
    source = np.iinfo(values.dtype)
    # Bounds that the source can hold: comparing an int64 with 2**64 - 1 would go through float64.
    low, high = max(int(target.min), int(source.min)), min(int(target.max), int(source.max))
    lossy = (values < low) | (values > high)
    if not lossy.any():
        return CastResult(values.astype(dtype))
    return _lossy_only(np.clip(values, low, high).astype(dtype), lossy)


def _float_to_int(values: np.ndarray, target: NumberFormat) -> CastResult:
    x = values.astype(np.float64, copy=False)
    # For 64-bit targets max + 1 is a power of two and so exact in float64, max is not.
    low, end = float(target.min), float(target.max + 1)
    inside = (x >= low) & (x < end)
    whole = np.rint(x)
    lossy = ~(inside & (whole == x))
    if not lossy.any():
        return CastResult(x.astype(target.numpy_dtype))
    result = np.zeros(x.shape, dtype=target.numpy_dtype)
    in_range = (whole >= low) & (whole < end)
    result[in_range] = whole[in_range].astype(target.numpy_dtype)
    result[whole >= end] = int(target.max)
    result[whole < low] = int(target.min)
    return _lossy_only(result, lossy)


def _int_to_float(values: np.ndarray, target: NumberFormat) -> CastResult:
    if not values.size or max(-int(values.min()), int(values.max())) <= target.max_exact_int:
        return CastResult(values.astype(np.float64).astype(target.numpy_dtype))
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
    return _lossy_only(result, lossy)


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
    seen: float,
    out: np.ndarray | None,
) -> CastResult:
    x = values.astype(np.float64, copy=False)
    result = np.empty(x.shape, target.numpy_dtype) if out is None else out
    n_changed, largest, ends = _in_blocks(x, target, seen, result)
    if not n_changed:
        return CastResult(result, ends=ends)
    if ends is not None and integers is None and tolerance is None and largest <= _bound(target) * (1 + 1e-6):
        return CastResult(result, None, n_changed, lambda: _differ(x, result), largest, ends=ends)
    return _examined(x, result, target, integers, tolerance, ends)


def _bound(target: NumberFormat) -> float:
    """What rounding to nearest errs by at most, relative to the value, among normal numbers."""
    return target.spacing / 2


def _in_blocks(
    x: np.ndarray, target: NumberFormat, seen: float, result: np.ndarray
) -> tuple[int, float, tuple[float, float] | None]:
    """Cast into the result. → how many elements that changed (a NaN counts), the largest relative error
    found, and the ends where all elements are finite. In blocks that stay in the processor's cache: that
    halves the time.

    Args:
        x: float64, any shape.
    """
    flat, casts = x.reshape(-1), result.reshape(-1)
    size = min(_BLOCK, flat.size)
    wide, mask, near = np.empty(size), np.empty(size, bool), np.empty(size, np.float32)
    smallest, largest_of = np.minimum.reduce, np.maximum.reduce  # array.min() takes a detour
    lows, highs, n_changed, largest = [], [], 0, 0.0
    enough, least = _NEAR * _bound(target), target.smallest_normal or 0.0
    narrow = target.name == "float32"
    for start in range(0, flat.size, _BLOCK):
        values = flat[start : start + _BLOCK]
        cast, back, differs = casts[start : start + _BLOCK], wide[: values.size], mask[: values.size]
        _round(values, target, cast)
        if narrow:  # NumPy's own float32 has the quick loops; the other narrow formats have none
            some = cast
        else:
            some = back
            back[...] = cast
        lows.append(smallest(some))
        highs.append(largest_of(some))
        count = int(np.count_nonzero(np.not_equal(some, values, out=differs).view(np.uint8)))
        if not count:
            continue
        n_changed += count
        magnitudes = np.abs(some, out=near[: values.size] if narrow else back)
        # Among normal numbers no error is larger than the bound, so that some of them will do.
        normal = bool(smallest(magnitudes) >= least)
        if normal and max(largest, seen) >= enough:
            continue
        back[...] = cast
        step = _SOME if normal else _BLOCK
        for part in range(0, values.size, step):
            error = _largest_error(back[part : part + step], values[part : part + step])
            if not error <= largest:
                largest = error
            if normal and max(largest, seen) >= enough:
                break
    return n_changed, largest, _ends(lows, highs)


def _largest_error(back: np.ndarray, values: np.ndarray) -> float:
    """Relative; `back` is overwritten. From the ratio, a pass less than from the difference, and right to a
    billionth. fmax and fmin pass over NaN: 0/0 where a zero stayed zero, and a NaN that stayed NaN."""
    np.divide(back, values, out=back)
    return max(float(np.fmax.reduce(back)) - 1, 1 - float(np.fmin.reduce(back)))


def _ends(lows: list[np.generic], highs: list[np.generic]) -> tuple[Any, Any] | None:
    """The least and the greatest, as Python numbers, where all are finite."""
    if not lows:
        return None
    low, high = np.min(lows).item(), np.max(highs).item()  # NaN stays
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def _differ(x: np.ndarray, result: np.ndarray) -> np.ndarray:
    """Mask of the elements that a cast changed; a NaN that stayed one is unchanged."""
    back = result.astype(np.float64)
    changed: np.ndarray = (back != x) & ~(np.isnan(x) & np.isnan(back))
    return changed


def _examined(
    x: np.ndarray,
    result: np.ndarray,
    target: NumberFormat,
    integers: np.ndarray | None,
    tolerance: float | None,
    ends: tuple[float, float] | None,
) -> CastResult:
    """Element by element, for the rare arrays where rounding to nearest in the normal range is not all."""
    changed = _differ(x, result)
    if not changed.any():
        return CastResult(result, ends=ends)
    back = result.astype(np.float64)
    error = np.abs(back / x - 1)
    lossy = changed & (~np.isfinite(back) | (back == 0))
    if integers is not None:
        lossy |= changed & integers
    if tolerance is not None:
        lossy |= changed & (error > tolerance)
    rounded = changed & ~lossy
    smallest = target.smallest_normal or 0.0
    return CastResult(
        result,
        lossy if lossy.any() else None,
        int(np.count_nonzero(changed)),
        lambda: changed,
        float(error[rounded].max()) if rounded.any() else 0.0,
        int(np.count_nonzero(rounded & (np.abs(back) < smallest))),
        ends,
    )


def _round(x: np.ndarray, target: NumberFormat, out: np.ndarray | None = None) -> np.ndarray:
    """float64 to the nearest of the target, ties to even, rounded once; into `out`, or a new array.

    ml_dtypes goes through float32 and so rounds twice: 1 + 2**-8 + 2**-40 becomes 1 in its bfloat16, where
    1 + 2**-7 is nearer. Rounding the first time to odd leaves the second time nothing to get wrong
    (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums").
    """
    if out is None:
        out = np.empty(x.shape, target.numpy_dtype)
    if target.name in ("float64", "float32", "float16"):
        out[...] = x
        return out
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
    out[...] = near
    return out
