"""The noise that rounding to a format makes, on a sample of elements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from castiron.formats import number_format
from castiron.health.rounding import overflows_from
from castiron.health.statistics import SAMPLE, Statistics, decibels
from castiron.torch.dtypes import torch_dtype
from castiron.torch.health.tensors import values_of


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


def shifted(x: Tensor, exponent: Tensor) -> Tensor:
    """x · 2**exponent in float64, also where the power alone is no float64."""
    half = (exponent.double() / 2).floor()
    return x * torch.exp2(half) * torch.exp2(exponent.double() - half)
