"""`castiron.health.statistics.measure`, on any device: few kernels, no wait; figures stay there until they
are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from castiron.formats import number_format
from castiron.health.rounding import highest_exponent, overflows_from
from castiron.health.statistics import WHAT_IF, Statistics, WhatIf, bins_of, edges, from_counts
from castiron.torch.health.noise import shifted
from castiron.torch.health.tensors import values_of

_CHUNK = 1 << 24
"""Elements at a time: float32 counts them exactly."""


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
    for part in flat.split(_CHUNK):
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
