"""`castiron.health.statistics.measure`, of tensors on a CPU: through NumPy, which shares the tensor's memory
and is several times as fast there as torch's integer operations."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from castiron.formats import number_format
from castiron.health.statistics import WHAT_IF, Statistics, WhatIf, best_scale, bins_of, edges, from_counts
from castiron.torch.health.noise import noise_of, sampled, with_noise
from castiron.torch.health.tensors import values_of

_CHUNK = 1 << 16
"""Elements at a time on a CPU: what is made of them stays in its cache."""


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
