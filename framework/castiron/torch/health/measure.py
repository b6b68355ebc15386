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

_TYPES = {8: (np.uint64, np.int64, 52), 4: (np.uint32, np.int32, 23)}


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
    """Collects what is measured in a step; `take` brings all of it to the host at once."""

    formats: tuple[str, ...] = ()
    _done: dict[Any, Statistics] = field(default_factory=dict)
    _pending: dict[Any, Pending] = field(default_factory=dict)

    def add(self, key: Any, tensors: Sequence[Tensor]) -> None:
        """Measure tensors as one group. A second call of the same key adds to the first."""
        flat = [t for t in tensors if t.is_floating_point() and t.numel()]
        if not flat:
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


@torch.no_grad()
def measure_on_cpu(tensors: Sequence[Tensor], dtype: str, formats: Sequence[str] = WHAT_IF) -> Statistics:
    """The statistics of a group of tensors on a CPU. All of one format."""
    bins = bins_of(dtype)
    counts = torch.zeros(bins, dtype=torch.int64)
    zeros = nans = size = 0
    largest, smallest, squares = 0, np.iinfo(np.uint64).max, 0.0
    kind, signed, fraction = _TYPES[8 if bins == 2048 else 4]
    infinity = kind((bins - 1) << fraction)
    chunks: list[np.ndarray] = []
    for flat in (values_of(t).reshape(-1) for t in tensors):
        for part in flat.split(_CHUNK):
            x = part if part.dtype in (torch.float32, torch.float64) else part.float()
            x = x.contiguous()
            m = x.numpy().view(kind) & kind((1 << (bins_bits(bins) + fraction)) - 1)
            exponents = (m.view(signed) >> fraction).astype(np.uint8 if bins == 256 else np.int16)
            here = torch.bincount(torch.from_numpy(exponents), minlength=bins)
            counts += here
            size += part.numel()
            if here[0].item():
                zeros += m.size - int(np.count_nonzero(m))
            if here[-1].item():
                nans += int(np.count_nonzero(m > infinity))
                finite = m[m < infinity]
            else:
                finite = m
            if finite.size:
                largest = max(largest, int(finite.max()))
                # 0 - 1 wraps around to the largest integer: zeros are not the smallest
                smallest = min(smallest, int((finite - kind(1)).min()))
            wide = torch.from_numpy(finite.view(np.float64 if bins == 2048 else np.float32)).double()
            squares += float(torch.dot(wide, wide))  # NumPy's own starts threads for it
            if formats:
                chunks.append(m)

    def number(pattern: int) -> float:
        return float(np.array([pattern], kind).view(np.float64 if bins == 2048 else np.float32)[0])

    top = number(largest)
    low = number(smallest + 1) if largest else 0.0
    live = size - zeros - int(counts[-1])
    exponents64 = counts.numpy()
    what_if: dict[str, WhatIf] = {}
    if formats:
        wanted: dict[float, int] = {}
        scales = {f: best_scale(top, number_format(f)) for f in formats}
        marks = {f: (edges(f), edges(f, scales[f])) for f in formats}
        for mark in {m for pair in marks.values() for three in pair for m in three}:
            wanted[mark] = _at_least(mark, exponents64, chunks, live, kind, top)
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


def bins_bits(bins: int) -> int:
    """Bits of the exponent: 8 of 256 bins."""
    return bins.bit_length() - 1


def _at_least(
    mark: float, exponents: np.ndarray, chunks: Sequence[np.ndarray], live: int, kind: Any, largest: float
) -> int:
    """How many live elements are at or above a magnitude. Elements are looked at only where bins leave it
    open."""
    if mark > largest:
        return 0
    bins = len(exponents)
    size = np.float64 if bins == 2048 else np.float32
    with np.errstate(over="ignore", under="ignore"):
        edge = size(mark)
        if float(edge) < mark:
            edge = np.nextafter(edge, size(np.inf))
    pattern = int(np.array([edge], size).view(kind)[0])
    fraction = 52 if bins == 2048 else 23
    place = pattern >> fraction
    above = int(exponents[place + 1 : -1].sum())
    if not exponents[place]:
        return above
    if pattern == place << fraction and place:  # a power of two: the whole bin
        return above + int(exponents[place])
    if pattern <= 1:
        return live
    infinity = kind((bins - 1) << fraction)
    return sum(int(np.count_nonzero((m >= kind(pattern)) & (m < infinity))) for m in chunks)


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
