"""What the order of accumulation does to gradients: `castiron.health.dynamics.accumulation_noise`, on the
device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from castiron.health.dynamics import PARTS, noise_between

_UNITS = 64
"""Units of a layer, at most, whose gradient is looked at: every n-th."""


class OrderWatch:
    """Keeps the parts of layers' gradients from the backward pass on: `PARTS` numbers a unit, no more."""

    def __init__(self) -> None:
        self._parts: dict[str, Tensor] = {}

    def see(self, layer: str, gradient: Tensor, axis: int) -> None:
        """The gradient of what a layer hands on; of a layer that was called several times, each of them."""
        if gradient.dim() < 2 or gradient.numel() // gradient.shape[axis] < PARTS:
            return
        made = parts_of(gradient, axis)
        known = self._parts.get(layer)
        self._parts[layer] = made if known is None else known + made

    def take(self, formats: Mapping[str, torch.dtype]) -> dict[str, float]:
        """The noise by layer, of the layers that a format of gradients is given for. Waits for the device."""
        parts, self._parts = self._parts, {}
        found: dict[str, float] = {}
        for dtype in dict.fromkeys(formats.values()):
            here = [layer for layer in parts if formats.get(layer) == dtype]
            if not here:
                continue
            terms = torch.cat([parts[layer] for layer in here], 1).to(dtype)
            sums = torch.stack([_sum(terms), _sum(terms.flip(0)), terms.double().sum(0)]).cpu().numpy()
            start = 0
            for layer in here:
                end = start + parts[layer].shape[1]
                noise = noise_between(*sums[:, start:end])
                start = end
                if noise is not None:
                    found[layer] = noise
        return found

    def discard(self) -> None:
        """The step was held."""
        self._parts = {}


@torch.no_grad()
def parts_of(gradient: Tensor, axis: int) -> Tensor:
    """`castiron.health.dynamics.parts_of`, of a sample of the units. float64 [PARTS, units]."""
    units = gradient.shape[axis]
    rows = gradient.movedim(axis, -1)[..., :: max(-(-units // _UNITS), 1)]
    rows = rows.reshape(-1, rows.shape[-1])
    return torch.stack([part.sum(0, dtype=torch.float64) for part in rows.tensor_split(PARTS)])


def _sum(terms: Iterable[Tensor]) -> Tensor:
    """One after the other, each sum in the terms' own format. → float64"""
    first, *rest = terms
    total = first
    for term in rest:
        total = total + term
    return total.double()
