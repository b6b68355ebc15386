"""`castiron.health.statistics.measure`, on the device: few kernels, no wait, one copy to the host for all
tensors.

On a CPU the same is counted through NumPy, which shares the tensor's memory and is several times as fast
there as torch's integer operations.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
    plain, three scaled."""
    formats: tuple[str, ...] = ()
    scales: dict[str, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class _Sample:
    """Elements that the noise of rounding is measured on, once for all groups of a batch."""

    key: Any
    values: Tensor
    """float64 [≤ SAMPLE]"""
    scales: dict[str, Any]
    """Best scale by format: a number, or a tensor on the device."""


@dataclass(slots=True)
class Batch:
    """Collects what is measured in a step; `take` and `take_peaks` bring all of it to the host at once.

    With `peaks_only` nothing but the largest magnitudes is to be measured, which is a tenth of the work.
    """

    formats: tuple[str, ...] = ()
    peaks_only: bool = False
    _samples: list[_Sample] = field(default_factory=list)
    _peaks: list[tuple[Any, torch.dtype, Tensor, Tensor]] = field(default_factory=list)
    _known_peaks: list[tuple[Any, torch.dtype, float, float]] = field(default_factory=list)
    _done: dict[Any, Statistics] = field(default_factory=dict)
    _pending: dict[Any, Pending] = field(default_factory=dict)

    def add(self, key: Any, tensors: Sequence[Tensor]) -> None:
        """Measure tensors as one group. A second call of the same key adds to the first."""
        flat = [t for t in tensors if t.is_floating_point() and t.numel()]
        if not flat:
            return
        dtype = dtype_name(flat[0].dtype)
        if flat[0].is_cpu:
            made = measure_on_cpu(flat, dtype, self.formats, noise=False)
            if made.what_if:
                scales = {f: w.scale for f, w in made.what_if.items()}
                self._samples.append(_Sample(key, sampled(flat), scales))
            known = self._done.get(key)
            self._done[key] = made if known is None else merged(known, made)
        else:
            name = key
            while key in self._pending:
                key = (key, "again")
            pending = self._pending[key] = measure_on_device(join(flat), dtype, self.formats)
            if pending.scales:
                self._samples.append(_Sample(name, sampled(flat), pending.scales))

    def add_peak(self, key: Any, tensor: Tensor) -> None:
        """Measure the largest magnitude of a tensor that has elements."""
        x = tensor.detach()
        dtype = x.dtype
        low, high = torch.aminmax(x if dtype.itemsize > 1 else x.float())
        if x.is_cpu:  # nothing to wait for
            self._known_peaks.append((key, dtype, low.item(), high.item()))
        else:
            self._peaks.append((key, dtype, low, high))

    def take(self) -> dict[Any, Statistics]:
        """Everything measured so far, and start anew. Waits for the device."""
        noise = self._noise()
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
        for key, ratios in noise.items():
            done[key] = with_noise(done[key], ratios)
        return done

    def _noise(self) -> dict[Any, dict[str, tuple[float, float]]]:
        """Signal-to-noise ratios of rounding by group and format, plain and scaled, in decibels."""
        samples, self._samples = self._samples, []
        found: dict[Any, dict[str, tuple[float, float]]] = {}
        for device in dict.fromkeys(s.values.device for s in samples):
            here = [s for s in samples if s.values.device == device]
            made = noise_of([s.values for s in here], [s.scales for s in here])
            for s, ratios in zip(here, made, strict=True):
                known = found.get(s.key)
                found[s.key] = (
                    ratios
                    if known is None
                    else {
                        f: (_least(known[f][0], r[0]), _least(known[f][1], r[1])) for f, r in ratios.items()
                    }
                )
        return found

    def take_peaks(self) -> dict[Any, tuple[str, float]]:
        """Formats and largest magnitudes: infinite where an element is not finite. Waits for the device."""
        peaks, self._peaks = self._peaks, []
        ends, self._known_peaks = self._known_peaks, []
        for kind in {(p[2].dtype, p[2].device) for p in peaks}:  # one, mostly
            here = [p for p in peaks if (p[2].dtype, p[2].device) == kind]
            host = torch.stack([p[2] for p in here] + [p[3] for p in here]).tolist()
            ends += [
                (key, dtype, low, high)
                for (key, dtype, _, _), low, high in zip(here, host, host[len(here) :], strict=False)
            ]
        found: dict[Any, tuple[str, float]] = {}
        for key, dtype, low, high in ends:
            number = max(-low, high)
            if number != number or low != low:  # NaN
                number = math.inf
            known = found.get(key)
            if known is None or number > known[1]:
                found[key] = (dtype_name(dtype), number)
        return found


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
def measure_on_cpu(
    tensors: Sequence[Tensor], dtype: str, formats: Sequence[str] = WHAT_IF, *, noise: bool = True
) -> Statistics:
    """The statistics of a group of tensors on a CPU, all of one format. Without `noise` the ratios of signal
    to noise are NaN."""
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
        for f, (plain, scaled) in marks.items():
            what_if[f] = from_counts(
                f,
                live,
                scales[f],
                [wanted[m] for m in plain],
                [wanted[m] for m in scaled],
                math.nan,
                math.nan,
            )
    made = Statistics(dtype, size, exponents64, zeros, nans, top, low, squares, what_if)
    if noise and what_if:
        made = with_noise(made, noise_of([sampled(tensors)], [scales])[0])
    return made


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
    pattern = _pattern(mark, bits.bins)
    place = pattern >> bits.fraction
    above = int(exponents[place + 1 : -1].sum())
    if not exponents[place]:
        return above
    if pattern == place << bits.fraction and place:  # a power of two: the whole bin
        return above + int(exponents[place])
    if pattern <= 1:
        return live
    least = bits.kind(pattern)
    return sum(int(np.count_nonzero(m >= least)) for m in chunks) - int(exponents[-1])


@functools.lru_cache(maxsize=4096)
def _pattern(mark: float, bins: int) -> int:
    """The bits of the smallest float of a histogram's format that is at least a magnitude."""
    bits = _FLOAT64 if bins == 2048 else _FLOAT32
    with np.errstate(over="ignore", under="ignore"):
        edge = bits.real(mark)
        if float(edge) < mark:
            edge = np.nextafter(edge, bits.real(np.inf))
    return int(edge.view(bits.kind))


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
    scales = {f: _best_scale(figures[2], f) for f in formats}
    if formats:
        for f in formats:
            plain = torch.tensor(edges(f), dtype=torch.float64, device=device)
            scaled = _scaled_edges(f, scales[f])
            totals = torch.zeros(6, dtype=torch.float64, device=device)
            for magnitude in parts:
                wide = magnitude.double()
                for i, mark in enumerate((*plain, *scaled)):
                    totals[i] += ((wide >= mark) & (wide > 0)).sum()
            pieces += [scales[f].reshape(1), totals]
    return Pending(dtype, flat.numel(), torch.cat(pieces), tuple(formats), scales)


def read(pending: Pending, vector: np.ndarray) -> Statistics:
    """The statistics in a vector that has come to the host, without the noise of rounding."""
    bins = bins_of(pending.dtype)
    counts = vector[:bins].astype(np.int64)
    zeros, nans, largest, smallest, squares = vector[bins : bins + 5].tolist()
    live = pending.size - int(zeros) - int(counts[-1])
    what_if: dict[str, WhatIf] = {}
    for i, f in enumerate(pending.formats):
        scale, *rest = vector[bins + 5 + 7 * i : bins + 5 + 7 * (i + 1)].tolist()
        numbers = [int(n) for n in rest]
        what_if[f] = from_counts(f, live, int(scale), numbers[:3], numbers[3:], math.nan, math.nan)
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


def sampled(tensors: Sequence[Tensor]) -> Tensor:
    """`castiron.health.statistics.sample` of the elements of all tensors, one after the other. float64, a
    copy."""
    flat = [values_of(t).reshape(-1) for t in tensors]
    stride = max(-(-sum(t.numel() for t in flat) // SAMPLE), 1)
    picked: list[Tensor] = []
    start = 0
    for t in flat:
        picked.append(t[start::stride].double())
        start = (start - t.numel()) % stride
    found = torch.cat(picked) if len(picked) > 1 else picked[0]
    return torch.where(found.isfinite(), found, 0)


def noise_of(
    samples: Sequence[Tensor], scales: Sequence[dict[str, Any]]
) -> list[dict[str, tuple[float, float]]]:
    """Per sample and format: the ratio of signal to noise in decibels, plain and scaled. All samples of one
    device, rounded together. Waits for the device."""
    x = nn.utils.rnn.pad_sequence(list(samples), batch_first=True)  # zeros add nothing
    names = list(scales[0])
    ratios: list[Tensor] = []
    for name in names:
        ks = [s[name] for s in scales]
        k = torch.stack(ks) if isinstance(ks[0], Tensor) else torch.tensor(ks, device=x.device)
        ratios.append(_noise(torch.cat([x, shifted(x, k.unsqueeze(1))]), name))
    host = torch.stack(ratios).tolist()  # [formats, plain then scaled samples, 2]
    count = len(samples)
    return [
        {f: (decibels(*host[j][i]), decibels(*host[j][count + i])) for j, f in enumerate(names)}
        for i in range(count)
    ]


def with_noise(of: Statistics, ratios: dict[str, tuple[float, float]]) -> Statistics:
    """The same statistics with ratios of signal to noise, plain and scaled, in decibels."""
    made = {
        f: replace(w, snr_db=ratios[f][0], scaled_snr_db=ratios[f][1]) if f in ratios else w
        for f, w in of.what_if.items()
    }
    return replace(of, what_if=made)


def _noise(x: Tensor, name: str) -> Tensor:
    """Signal and noise of what stays finite, both over the square of a row's largest: [N, S] → float64
    [N, 2]."""
    # torch makes the largest number of float8_e4m3fn of all that is larger: what overflows is told beforehand
    x = torch.where(x.abs() < overflows_from(number_format(name)), x, 0)
    difference = x - x.float().to(torch_dtype(name)).double()
    # The largest as 1, by a power of two: squares of what is very small are not lost.
    power = -torch.frexp(x.abs().amax(1, keepdim=True)).exponent
    x, difference = shifted(x, power), shifted(difference, power)
    return torch.stack([x.square().sum(1), difference.square().sum(1)], 1)


def _least(p: float, q: float) -> float:
    """The smaller of two ratios; a NaN is none."""
    return min((v for v in (p, q) if not math.isnan(v)), default=math.nan)


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

    return WhatIf(
        name,
        mean(x.overflow, y.overflow),
        mean(x.underflow, y.underflow),
        mean(x.subnormal, y.subnormal),
        _least(x.snr_db, y.snr_db),
        min(x.scale, y.scale) if a.live and b.live else (x.scale if a.live else y.scale),
        mean(x.scaled_underflow, y.scaled_underflow),
        mean(x.scaled_subnormal, y.scaled_subnormal),
        _least(x.scaled_snr_db, y.scaled_snr_db),
    )
