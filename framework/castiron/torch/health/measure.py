"""What is measured in a step, collected: tensors on a CPU at once, others by kernels whose figures come to
the host in one copy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from castiron.health.merging import least, merged
from castiron.health.statistics import Statistics
from castiron.torch.dtypes import dtype_name
from castiron.torch.health.cpu import measure_on_cpu
from castiron.torch.health.device import Pending, measure_on_device, read
from castiron.torch.health.noise import noise_of, sampled, with_noise
from castiron.torch.health.tensors import join, values_of


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
        # of a tensor that is shared among processes, this one may have nothing
        flat = [v for t in tensors if t.is_floating_point() and (v := values_of(t)).numel()]
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
                    else {f: (least(known[f][0], r[0]), least(known[f][1], r[1])) for f, r in ratios.items()}
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
