"""What is measured of one tensor, defined once, in NumPy: its exponents, its extremes, and what other formats
would make of it. A wing computes the same on its device; tests hold one against the other."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from castiron.formats import FORMATS, NumberFormat, number_format
from castiron.health.rounding import (
    highest_exponent,
    lowest_exponent,
    overflows_from,
    round_to,
    subnormal_below,
    underflows_to,
)

WHAT_IF: tuple[str, ...] = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
"""Formats that are always asked about, whatever is in use."""

SAMPLE = 512
"""Elements at most that the noise of rounding is measured on; see `sample`."""

Values = NDArray[Any]


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What a format would make of a tensor, stored in it as it is, and times a power of two.

    Shares are of the finite elements that are not zero: a tensor that is mostly zeros (the gradient of an
    embedding) hides nothing behind them.
    """

    format: str
    overflow: float
    """Share that rounds to more than the format's largest number."""
    underflow: float
    """Share that rounds to zero."""
    subnormal: float
    """Share that rounds to a subnormal number: stored, with fewer bits."""
    snr_db: float
    """10 log10(sum x² / sum (x - Q(x))²) over a sample of what stays finite; infinite where nothing is
    rounded, NaN where nothing is there to be rounded."""
    scale: int
    """k of the best scale 2**k: the largest with which nothing overflows."""
    scaled_underflow: float
    """As `underflow`, of x · 2**k."""
    scaled_subnormal: float
    scaled_snr_db: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """One tensor, measured. Everything but the noise of rounding is of all elements."""

    dtype: str
    size: int
    exponents: NDArray[np.int64]
    """Elements by biased exponent: 256 bins as in float32 (also for narrower formats, whose values float32
    holds), 2048 for float64. Bin 0 holds zeros and subnormals, the last NaN and infinities, bin b the
    magnitudes from 2**(b - bias) up to twice that."""
    zeros: int
    nans: int
    largest: float
    """Largest finite magnitude; 0 where there is none."""
    smallest: float
    """Smallest finite magnitude that is not zero; 0 where there is none."""
    squares: float
    """Sum of the squares of the finite elements, in float64."""
    what_if: Mapping[str, WhatIf] = field(default_factory=dict)

    # --- counts ------------------------------------------------------------------------------------

    @property
    def bias(self) -> int:
        return bias_of(len(self.exponents))

    @property
    def non_finite(self) -> int:
        return int(self.exponents[-1])

    @property
    def infinities(self) -> int:
        return self.non_finite - self.nans

    @property
    def live(self) -> int:
        """Finite elements that are not zero."""
        return self.size - self.zeros - self.non_finite

    @property
    def subnormals(self) -> int:
        """Elements that are subnormal in the format in use (its smallest normal number is a power of two,
        so that bins tell exactly)."""
        edge = lowest_exponent(number_format(self.dtype)) + self.bias
        return int(self.exponents[: max(edge, 1)].sum()) - self.zeros

    def share(self, count: float) -> float:
        """A count, over all elements; 0 of an empty tensor."""
        return count / self.size if self.size else 0.0

    @property
    def rms(self) -> float:
        """Root of the mean square of the finite elements."""
        finite = self.size - self.non_finite
        return math.sqrt(self.squares / finite) if finite else 0.0

    @property
    def norm(self) -> float:
        """L2 norm of the finite elements."""
        return math.sqrt(self.squares)

    # --- headroom ----------------------------------------------------------------------------------

    def headroom_up(self, name: str | None = None) -> float | None:
        """Binades from the largest magnitude to the largest number of a format (the one in use):
        log2(max / largest). Negative where it would overflow; None where all is zero."""
        return _binades(number_format(name or self.dtype).max, self.largest)

    def headroom_down(self, name: str | None = None) -> float | None:
        """Binades from the smallest normal number of a format (the one in use) to the smallest magnitude:
        log2(smallest / smallest normal). Negative where elements are, or would be, subnormal or zero."""
        edge = number_format(name or self.dtype).smallest_normal
        assert edge is not None
        return _binades(self.smallest, edge) if self.smallest else None

    def quantile(self, share: float) -> float:
        """A magnitude that at most this share of the live elements lies below: the lower edge of a binade
        (for subnormals of float32: its smallest normal number)."""
        counts = self.exponents[:-1].astype(np.float64)
        counts[0] -= self.zeros
        total = counts.sum()
        if not total:
            return 0.0
        position = int(np.searchsorted(np.cumsum(counts), share * total, side="right"))
        return math.ldexp(1.0, max(min(position, len(counts) - 1), 1) - self.bias)


def measure(values: Values, dtype: str | None = None, formats: Sequence[str] = WHAT_IF) -> Statistics:
    """The reference: every statistic by its definition, in float64.

    Args:
        values: of any shape and floating-point format, also those of `ml_dtypes`.
        dtype: the format's name; by default that of the array.
        formats: those to ask about.
    """
    name = number_format(dtype or values.dtype.name).name
    wide = values.reshape(-1).astype(np.float64 if name == "float64" else np.float32)
    bits: NDArray[Any] = wide.view(np.int64 if name == "float64" else np.int32)
    bins, fraction = (2048, 52) if name == "float64" else (256, 23)
    exponents = np.bincount((bits >> fraction) & (bins - 1), minlength=bins).astype(np.int64)
    with np.errstate(invalid="ignore"):  # signalling NaN
        x = wide.astype(np.float64)
    finite = np.abs(x[np.isfinite(x)])
    live = finite[finite > 0]
    with np.errstate(over="ignore"):
        squares = float(np.sum(finite * finite))
    return Statistics(
        dtype=name,
        size=x.size,
        exponents=exponents,
        zeros=int(np.count_nonzero(finite == 0)),
        nans=int(np.count_nonzero(np.isnan(x))),
        largest=float(live.max()) if live.size else 0.0,
        smallest=float(live.min()) if live.size else 0.0,
        squares=squares,
        what_if={f: what_if(x, f) for f in formats},
    )


def what_if(values: Values, name: str) -> WhatIf:
    """What a format would make of these values, by rounding every one of them."""
    x = values.reshape(-1).astype(np.float64)
    live = x[np.isfinite(x) & (x != 0)]
    of = number_format(name)
    normal = of.smallest_normal
    assert normal is not None
    scale = best_scale(float(np.abs(live).max()) if live.size else 0.0, of)
    plain, scaled = np.abs(round_to(live, name)), np.abs(round_to(np.ldexp(live, scale), name))
    picked = sample(x)

    def share(hits: NDArray[np.bool_]) -> float:
        return float(np.count_nonzero(hits)) / live.size if live.size else 0.0

    def is_subnormal(y: NDArray[np.float64]) -> NDArray[np.bool_]:
        subnormal: NDArray[np.bool_] = (y > 0) & (y < normal)
        return subnormal

    return WhatIf(
        format=name,
        overflow=share(~np.isfinite(plain)),
        underflow=share(plain == 0),
        subnormal=share(is_subnormal(plain)),
        snr_db=snr_db(picked, name),
        scale=scale,
        scaled_underflow=share(scaled == 0),
        scaled_subnormal=share(is_subnormal(scaled)),
        scaled_snr_db=snr_db(picked, name, scale),
    )


def best_scale(largest: float, of: NumberFormat) -> int:
    """k of the largest power of two by which the largest magnitude still does not overflow; 0 where all is 0.

    The scale of FP8 training from the current maximum (Micikevicius et al. 2022, section 4), as a power of
    two, so that no significant bit changes.
    """
    if largest == 0:
        return 0
    k = highest_exponent(of) - (math.frexp(largest)[1] - 1)
    return k - 1 if math.ldexp(largest, k) >= overflows_from(of) else k


def sample(values: Values, limit: int = SAMPLE) -> Values:
    """Every n-th element in row-major order, n the smallest with which there are at most `limit`."""
    flat = values.reshape(-1)
    return flat[:: max(-(-flat.size // limit), 1)]


def snr_db(values: Values, name: str, scale: int = 0) -> float:
    """Signal-to-noise ratio of rounding x · 2**scale to a format, in decibels; of the elements that are
    finite and stay so. Large where rounding is harmless: about 6 dB per bit of the significand."""
    x = values.reshape(-1).astype(np.float64)
    x = np.ldexp(x[np.isfinite(x)], scale)
    rounded = round_to(x, name)
    kept = np.isfinite(rounded)
    # the largest as 1: squares of what is very large or very small are not lost
    largest = float(np.abs(x[kept]).max()) if kept.any() else 0.0
    if largest == 0:
        return math.nan
    x, rounded = x[kept] / largest, rounded[kept] / largest
    return decibels(float(np.sum(x * x)), float(np.sum((x - rounded) ** 2)))


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise); infinite without noise, NaN without either."""
    if noise == 0:
        return math.inf if signal else math.nan
    return 10 * math.log10(signal / noise) if signal else -math.inf


# --- what a wing counts, and what follows from it ----------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def edges(name: str, scale: int = 0) -> tuple[float, float, float]:
    """Magnitudes |x| at which rounding x · 2**scale to a format changes its kind, ascending:
    (from here on not zero, from here on normal, from here on overflow)."""
    of = number_format(name)
    beyond = overflows_from(of)
    tie_stays = not of.has_infinity  # the tie above the largest number of float8_e4m3fn goes down to it
    return (
        _above(underflows_to(of), -scale),
        _from(subnormal_below(of), -scale),
        _above(_before(beyond), -scale) if tie_stays else _from(beyond, -scale),
    )


def from_counts(
    name: str,
    live: int,
    scale: int,
    plain: Sequence[int],
    scaled: Sequence[int],
    snr: float,
    scaled_snr: float,
) -> WhatIf:
    """A what-if from counts of live elements at or above `edges(name)` and `edges(name, scale)`."""

    def share(count: int) -> float:
        return count / live if live else 0.0

    return WhatIf(
        format=name,
        overflow=share(plain[2]),
        underflow=share(live - plain[0]),
        subnormal=share(plain[0] - plain[1]),
        snr_db=snr,
        scale=scale,
        scaled_underflow=share(live - scaled[0]),
        scaled_subnormal=share(scaled[0] - scaled[1]),
        scaled_snr_db=scaled_snr,
    )


def bias_of(bins: int) -> int:
    """The exponent bias of a histogram of so many bins: 127 of 256, 1023 of 2048."""
    return bins // 2 - 1


def bins_of(dtype: str) -> int:
    """Bins of the exponent histogram of a format: float64's own 2048, else float32's 256."""
    return 2 ** FORMATS["float64"].exponent_bits if dtype == "float64" else 256


def _binades(above: float, below: float) -> float | None:
    return math.log2(above) - math.log2(below) if above and below else None


def _from(value: float, exponent: int) -> float:
    """The smallest float64 that is at least value · 2**exponent."""
    moved = _moved(value, exponent)
    return _next(moved) if _moved(moved, -exponent) < value else moved


def _above(value: float, exponent: int) -> float:
    """The smallest float64 above value · 2**exponent."""
    moved = _moved(value, exponent)
    return moved if _moved(moved, -exponent) > value else _next(moved)


def _moved(value: float, exponent: int) -> float:
    """value · 2**exponent, rounded where it is subnormal, infinite where it is too large."""
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.inf


def _next(value: float) -> float:
    return math.nextafter(value, math.inf)


def _before(value: float) -> float:
    return math.nextafter(value, -math.inf)
