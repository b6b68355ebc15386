"""`castiron.health.statistics.measure`, on the device: few kernels, no wait, one copy to the host for all
tensors.

On a CPU the same is counted through NumPy, which shares the tensor's memory and is several times as fast
there as torch's integer operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from castiron.formats import number_format
from castiron.health.rounding import highest_exponent, overflows_from
from castiron.health.statistics import (
    SAMPLE,
    WHAT_IF,
    Statistics,
    WhatIf,
    best_scale,
    bins_of,
    decibels,
    edges,
    from_counts,
)
from castiron.torch.dtypes import dtype_name, torch_dtype

_CHUNK = 1 << 16
"""Elements at a time on a CPU: what is made of them stays in its cache."""
_DEVICE_CHUNK = 1 << 24
"""Elements at a time elsewhere: float32 counts them exactly."""


@dataclass(slots=True)
class Pending:
    """Measured tensors whose figures are still on their device."""

    dtype: str
    size: int
    vector: Tensor
    """float64: exponents, zeros, nans, largest, smallest, squares; then per format scale, three counts
    plain, three scaled, signal, noise, scaled signal, scaled noise."""
    formats: tuple[str, ...] = ()


@dataclass(slots=True)
class Batch:
    """Collects what is measured in a step; `take` brings all of it to the host at once.

    With `peaks_only` nothing but the largest magnitudes is measured, which is a tenth of the work.
    """

    formats: tuple[str, ...] = ()
    peaks_only: bool = False
    _peaks: dict[Any, list[Tensor]] = field(default_factory=dict)
    _dtypes: dict[Any, str] = field(default_factory=dict)
    _done: dict[Any, Statistics] = field(default_factory=dict)
    _pending: dict[Any, Pending] = field(default_factory=dict)

    def add(self, key: Any, tensors: Sequence[Tensor]) -> None:
        """Measure tensors as one group. A second call of the same key adds to the first."""
        flat = [t for t in tensors if t.is_floating_point() and t.numel()]
        if not flat:
            return
        if self.peaks_only:
            self._peaks.setdefault(key, []).extend(_peak(t) for t in flat)
            self._dtypes[key] = dtype_name(flat[0].dtype)
            return
        dtype = dtype_name(flat[0].dtype)
        if flat[0].is_cpu:
            made = measure_on_cpu(flat, dtype, self.formats)
            known = self._done.get(key)
            self._done[key] = made if known is None else merged(known, made)
        else:
            one = join(flat)
            while key in self._pending:
                key = (key, "again")
            self._pending[key] = measure_on_device(one, dtype, self.formats)

    def take(self) -> dict[Any, Statistics]:
        """Everything measured so far, and start anew. Waits for the device."""
        if self._pending:
            whole = torch.cat([p.vector for p in self._pending.values()]).cpu().numpy()
            position = 0
            for key, pending in self._pending.items():
                length = pending.vector.numel()
                made = read(pending, whole[position : position + length])
                position += length
                while isinstance(key, tuple) and len(key) == 2 and key[1] == "again":
                    key = key[0]
                known = self._done.get(key)
                self._done[key] = made if known is None else merged(known, made)
        done, self._done, self._pending = self._done, {}, {}
        return done

    def take_peaks(self) -> dict[Any, tuple[str, float]]:
        """Formats and largest magnitudes: infinite where an element is not finite. Waits for the device."""
        peaks, self._peaks = self._peaks, {}
        if not peaks:
            return {}
        highest = torch.stack([torch.stack(tensors).max() for tensors in peaks.values()]).cpu()
        numbers = highest.nan_to_num(nan=math.inf, posinf=math.inf).tolist()
        return {key: (self._dtypes[key], n) for key, n in zip(peaks, numbers, strict=True)}


@torch.no_grad()
def _peak(tensor: Tensor) -> Tensor:
    """Largest magnitude, NaN where there is one. float64, 0-dim, on the device."""
    x = values_of(tensor)
    x = x if x.dtype.itemsize > 1 else x.float()
    low, high = torch.aminmax(x)
    return torch.maximum(-low, high).double()


def join(tensors: Sequence[Tensor]) -> Tensor:
    """The elements of all tensors, one after the other."""
    flat = [values_of(t).reshape(-1) for t in tensors]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def values_of(tensor: Tensor) -> Tensor:
    """The numbers of a tensor: those stored where it is sparse, without gradients."""
    tensor = tensor.detach()
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()  # this rank's part of a parameter that is spread over several
    if tensor.is_sparse:
        tensor = tensor._values() if tensor.is_coalesced() else tensor.coalesce()._values()
    return tensor


# --- on a CPU --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Bits:
    """How a float lies in its bits, as NumPy scalars."""

    bins: int
    kind: Any
    signed: Any
    real: Any
    narrow: Any
    fraction: int
    magnitude: Any
    """All bits but the sign."""
    infinity: Any
    one: Any


_FLOAT32 = _Bits(
    256, np.uint32, np.int32, np.float32, np.uint8, 23,
    np.uint32(0x7FFFFFFF), np.uint32(0xFF << 23), np.uint32(1),
)  # fmt: skip
_FLOAT64 = _Bits(
    2048, np.uint64, np.int64, np.float64, np.int16, 52,
    np.uint64(2**63 - 1), np.uint64(0x7FF << 52), np.uint64(1),
)  # fmt: skip
_PLAIN = (np.float32(2.0**-40).view(np.uint32), np.float32(2.0**40).view(np.uint32))
"""Largest magnitudes between which float32 sums squares without loss."""


@torch.no_grad()
def measure_on_cpu(tensors: Sequence[Tensor], dtype: str, formats: Sequence[str] = WHAT_IF) -> Statistics:
    """The statistics of a group of tensors on a CPU. All of one format."""
    bits = _FLOAT64 if bins_of(dtype) == 2048 else _FLOAT32
    counts: Tensor | None = None
    zeros = nans = size = 0
    largest, smallest, squares = 0, -1, 0.0
    chunks: list[np.ndarray] = []
    parts = [p for t in tensors for p in values_of(t).reshape(-1).split(_CHUNK)]
    if len(parts) > 1 and len(parts) == len(tensors) and sum(p.numel() for p in parts) <= _CHUNK:
        parts = [torch.cat(parts)]
    for part in parts:
        x = part if part.dtype in (torch.float32, torch.float64) else part.float()
        m = x.contiguous().numpy().view(bits.kind) & bits.magnitude
        exponents = (m.view(bits.signed) >> bits.fraction).astype(bits.narrow)
        here = torch.bincount(torch.from_numpy(exponents), minlength=bits.bins)
        counts = here if counts is None else counts + here
        size += m.size
        low, high = m.min(), m.max()
        finite = m
        if high >= bits.infinity:
            nans += int(np.count_nonzero(m > bits.infinity))
            finite = m[m < bits.infinity]
            high = finite.max() if finite.size else bits.kind(0)
        if low == 0:
            zeros += m.size - int(np.count_nonzero(m))
            if high:  # 0 - 1 wraps around to the largest integer: zeros are not the smallest
                low = (finite - bits.one).min() + bits.one
        if high:
            largest = max(largest, int(high))
            smallest = int(low) if smallest < 0 else min(smallest, int(low))
            squares += _squares(x, finite, high, bits)
        if formats:
            chunks.append(m)
    assert counts is not None

    def number(pattern: int) -> float:
        return float(bits.kind(pattern).view(bits.real))

    top = number(largest)
    low = number(smallest) if largest else 0.0
    exponents64 = counts.numpy()
    live = size - zeros - int(exponents64[-1])
    what_if: dict[str, WhatIf] = {}
    if formats:
        wanted: dict[float, int] = {}
        scales = {f: best_scale(top, number_format(f)) for f in formats}
        marks = {f: (edges(f), edges(f, scales[f])) for f in formats}
        for mark in {m for pair in marks.values() for three in pair for m in three}:
            wanted[mark] = _at_least(mark, exponents64, chunks, live, bits, top)
        noise = noise_of(torch.cat([values_of(t).reshape(-1) for t in tensors]), scales)
        for f, (plain, scaled) in marks.items():
            s, n, ss, sn = noise[f].tolist()
            what_if[f] = from_counts(
                f,
                live,
                scales[f],
                [wanted[m] for m in plain],
                [wanted[m] for m in scaled],
                decibels(s, n),
                decibels(ss, sn),
            )
    return Statistics(dtype, size, exponents64, zeros, nans, top, low, squares, what_if)


def _squares(x: Tensor, finite: np.ndarray, high: Any, bits: _Bits) -> float:
    """Sum of the squares of the finite elements: in float32 where nothing of it is lost there."""
    if finite.size == x.numel() and bits is _FLOAT32 and _PLAIN[0] < high < _PLAIN[1]:
        flat = x.reshape(-1)
        return float(torch.dot(flat, flat))  # NumPy's own starts threads for it
    wide = torch.from_numpy(finite.view(bits.real)).double()
    return float(torch.dot(wide, wide))


def _at_least(
    mark: float, exponents: np.ndarray, chunks: Sequence[np.ndarray], live: int, bits: _Bits, largest: float
) -> int:
    """How many live elements are at or above a magnitude. Elements are looked at only where bins leave it
    open."""
    if mark > largest:
        return 0
    with np.errstate(over="ignore", under="ignore"):
        edge = bits.real(mark)
        if float(edge) < mark:
            edge = np.nextafter(edge, bits.real(np.inf))
    pattern = int(edge.view(bits.kind))
    place = pattern >> bits.fraction
    above = int(exponents[place + 1 : -1].sum())
    if not exponents[place]:
        return above
    if pattern == place << bits.fraction and place:  # a power of two: the whole bin
        return above + int(exponents[place])
    if pattern <= 1:
        return live
    least = bits.kind(pattern)
    return sum(int(np.count_nonzero((m >= least) & (m < bits.infinity))) for m in chunks)


# --- elsewhere -------------------------------------------------------------------------------------------


@torch.no_grad()
def measure_on_device(tensor: Tensor, dtype: str, formats: Sequence[str] = WHAT_IF) -> Pending:
    """The statistics of a tensor, left on its device. Waits for nothing."""
    device = tensor.device
    bins = bins_of(dtype)
    signed, fraction = (torch.int64, 52) if bins == 2048 else (torch.int32, 23)
    counts = torch.zeros(bins, dtype=torch.float64, device=device)
    figures = torch.zeros(5, dtype=torch.float64, device=device)
    figures[3] = math.inf
    flat = values_of(tensor).reshape(-1)
    parts: list[Tensor] = []
    for part in flat.split(_DEVICE_CHUNK):
        x = part if part.dtype in (torch.float32, torch.float64) else part.float()
        exponents = (x.contiguous().view(signed) >> fraction) & (bins - 1)
        counts += torch.histc(exponents.float(), bins=bins, min=0, max=bins)
        magnitude = x.abs()
        finite = magnitude.isfinite()
        magnitude = torch.where(finite, magnitude, 0)
        figures[0] += ((magnitude == 0) & finite).sum()
        figures[1] += x.isnan().sum()
        figures[2] = torch.maximum(figures[2], magnitude.max().double())
        least = torch.where(magnitude == 0, math.inf, magnitude).min().double()
        figures[3] = torch.minimum(figures[3], least)
        figures[4] += magnitude.double().square().sum()
        parts.append(magnitude)
    pieces = [counts, figures]
    if formats:
        scales = {f: _best_scale(figures[2], f) for f in formats}
        noise = noise_of(flat, scales)
        for f in formats:
            plain = torch.tensor(edges(f), dtype=torch.float64, device=device)
            scaled = _scaled_edges(f, scales[f])
            totals = torch.zeros(6, dtype=torch.float64, device=device)
            for magnitude in parts:
                wide = magnitude.double()
                for i, mark in enumerate((*plain, *scaled)):
                    totals[i] += ((wide >= mark) & (wide > 0)).sum()
            pieces += [scales[f].reshape(1), totals, noise[f]]
    return Pending(dtype, flat.numel(), torch.cat(pieces), tuple(formats))


def read(pending: Pending, vector: np.ndarray) -> Statistics:
    """The statistics in a vector that has come to the host."""
    bins = bins_of(pending.dtype)
    counts = vector[:bins].astype(np.int64)
    zeros, nans, largest, smallest, squares = vector[bins : bins + 5].tolist()
    live = pending.size - int(zeros) - int(counts[-1])
    what_if: dict[str, WhatIf] = {}
    for i, f in enumerate(pending.formats):
        scale, *rest = vector[bins + 5 + 11 * i : bins + 5 + 11 * (i + 1)].tolist()
        numbers = [int(n) for n in rest[:6]]
        s, n, ss, sn = rest[6:]
        what_if[f] = from_counts(
            f, live, int(scale), numbers[:3], numbers[3:], decibels(s, n), decibels(ss, sn)
        )
    return Statistics(
        pending.dtype,
        pending.size,
        counts,
        int(zeros),
        int(nans),
        largest,
        smallest if math.isfinite(smallest) else 0.0,
        squares,
        what_if,
    )


def _best_scale(largest: Tensor, name: str) -> Tensor:
    """`castiron.health.statistics.best_scale`, on the device. float64, 0-dim."""
    of = number_format(name)
    mantissa, exponent = torch.frexp(largest)
    k = (highest_exponent(of) + 1 - exponent).double()
    over = mantissa * 2.0 ** (highest_exponent(of) + 1) >= overflows_from(of)
    return torch.where(largest == 0, torch.zeros_like(k), k - over.double())


def _scaled_edges(name: str, scale: Tensor) -> Tensor:
    """`edges(name, k)` for a k on the device, as far as float64 is not subnormal there."""
    plain = torch.tensor(edges(name), dtype=torch.float64, device=scale.device)
    return shifted(plain, -scale)


# --- the noise of rounding ---------------------------------------------------------------------------


def noise_of(flat: Tensor, scales: dict[str, Any]) -> dict[str, Tensor]:
    """Per format: signal and noise of rounding a sample, plain and scaled. float64 [4] each, on the
    device."""
    picked = flat[:: max(-(-flat.numel() // SAMPLE), 1)].double()
    picked = torch.where(picked.isfinite(), picked, 0)
    found: dict[str, Tensor] = {}
    for name, k in scales.items():
        scaled = shifted(picked, torch.as_tensor(k, device=flat.device))
        found[name] = torch.cat([_noise(picked, name), _noise(scaled, name)])
    return found


def _noise(x: Tensor, name: str) -> Tensor:
    """Signal and noise of what stays finite, both over the square of the largest. float64 [2]."""
    # torch makes the largest number of float8_e4m3fn of all that is larger: what overflows is told beforehand
    x = torch.where(x.abs() < overflows_from(number_format(name)), x, 0)
    difference = x - x.float().to(torch_dtype(name)).double()
    # The largest as 1, by a power of two: squares of what is very small are not lost.
    power = -torch.frexp(x.abs().amax()).exponent
    x, difference = shifted(x, power), shifted(difference, power)
    return torch.stack([torch.dot(x, x), torch.dot(difference, difference)])


def shifted(x: Tensor, exponent: Tensor) -> Tensor:
    """x · 2**exponent in float64, also where the power alone is no float64."""
    half = (exponent.double() / 2).floor()
    return x * torch.exp2(half) * torch.exp2(exponent.double() - half)


# --- several parts of one group --------------------------------------------------------------------------


def merged(a: Statistics, b: Statistics) -> Statistics:
    """Two parts of a group as one. Of what other formats would make, each part by its live elements."""
    if a.dtype != b.dtype or len(a.exponents) != len(b.exponents):
        return a if a.size >= b.size else b
    smallest = [s for s in (a.smallest, b.smallest) if s]
    return Statistics(
        a.dtype,
        a.size + b.size,
        a.exponents + b.exponents,
        a.zeros + b.zeros,
        a.nans + b.nans,
        max(a.largest, b.largest),
        min(smallest, default=0.0),
        a.squares + b.squares,
        {f: _merged_what_if(a, b, f) for f in a.what_if if f in b.what_if},
    )


def _merged_what_if(a: Statistics, b: Statistics, name: str) -> WhatIf:
    x, y = a.what_if[name], b.what_if[name]
    total = a.live + b.live

    def mean(p: float, q: float) -> float:
        return (p * a.live + q * b.live) / total if total else 0.0

    def least(p: float, q: float) -> float:
        known = [v for v in (p, q) if not math.isnan(v)]
        return min(known, default=math.nan)

    return WhatIf(
        name,
        mean(x.overflow, y.overflow),
        mean(x.underflow, y.underflow),
        mean(x.subnormal, y.subnormal),
        least(x.snr_db, y.snr_db),
        min(x.scale, y.scale) if a.live and b.live else (x.scale if a.live else y.scale),
        mean(x.scaled_underflow, y.scaled_underflow),
        mean(x.scaled_subnormal, y.scaled_subnormal),
        least(x.scaled_snr_db, y.scaled_snr_db),
    )
