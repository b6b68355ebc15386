"""An exponential moving average of a model's weights, kept wide, and swapped in for evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn

from castiron.torch.dtypes import NARROW

BufferTreatment = Literal["copy", "average"]


class WeightAverage:
    """average ← decay · average + (1 − decay) · weights, after every optimizer step.

    Averages are float32 or wider: with a decay of 0.999 a 16-bit average would not move. During the first
    steps the decay is the smaller of `decay` and (1 + n) / (10 + n), so that the average forgets the
    initial weights (Tensorflow's ExponentialMovingAverage with `num_updates`). Integer buffers are copied;
    floating-point ones too (`buffers="copy"`: the running statistics are averages already), or averaged.

    Args:
        model: whose parameters are averaged, frozen ones too.
        decay: 0 < decay < 1.
        buffers: what is done with floating-point buffers.
        dtype: the least format of the averages.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float,
        *,
        buffers: BufferTreatment = "copy",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"Expected a decay between 0 and 1. Received {decay}.")
        if dtype in NARROW or not dtype.is_floating_point:
            raise ValueError(f"Expected averages in float32 or float64. Received {dtype}.")
        self.decay = decay
        self.buffers = buffers
        self.updates = 0
        """How many times the weights were averaged in."""
        self._averaged: dict[str, torch.Tensor] = dict(model.named_parameters())
        self._copied: dict[str, torch.Tensor] = {}
        for name, buffer in model.named_buffers():
            averaged = buffers == "average" and buffer.is_floating_point()
            (self._averaged if averaged else self._copied)[name] = buffer
        with torch.no_grad():
            self._averages = {n: _wide(t, dtype) for n, t in self._averaged.items()}
            self._copies = {n: t.detach().clone() for n, t in self._copied.items()}
        self._swapped = False

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights into the average. Call it once per committed optimizer step.

        Raises:
            RuntimeError: the averages are swapped in.
        """
        if self._swapped:
            raise RuntimeError(
                "Expected the model's own weights. Received a model with the averages swapped in."
            )
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        groups: dict[tuple[torch.device, torch.dtype], tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for name, average in self._averages.items():
            source = self._averaged[name].detach()
            if source.dtype is not average.dtype:
                source = source.to(average.dtype)
            averages, sources = groups.setdefault((average.device, average.dtype), ([], []))
            averages.append(average)
            sources.append(source)
        for averages, sources in groups.values():
            torch._foreach_lerp_(averages, sources, weight)
        for name, copy in self._copies.items():
            copy.copy_(self._copied[name])

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within it, the model has the averages, rounded to its formats; afterwards its own weights, bit for
        bit. Parameters keep their identity; nothing is copied back, so optimizers do not notice."""
        if self._swapped:
            yield
            return
        tensors = {**self._averaged, **self._copied}
        values = {**self._averages, **self._copies}
        own = {name: tensor.data for name, tensor in tensors.items()}
        self._swapped = True
        try:
            for name, tensor in tensors.items():
                tensor.data = values[name].to(device=tensor.device, dtype=tensor.dtype, copy=True)
            yield
        finally:
            for name, tensor in tensors.items():
                tensor.data = own[name]
            self._swapped = False

    def state_dict(self) -> dict[str, Any]:
        """Averages and copies by name, and how many updates they had."""
        return {
            "decay": self.decay,
            "updates": self.updates,
            "averages": dict(self._averages),
            "copies": dict(self._copies),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave. The decay stays the one declared now.

        Raises:
            ValueError: the names are not those of this model.
        """
        for kind, own in (("averages", self._averages), ("copies", self._copies)):
            if odd := sorted(set(own) ^ set(state[kind])):
                raise ValueError(
                    f"Expected the {kind} of this model's {len(own)} tensors. "
                    f"Received a state that differs in: {', '.join(odd[:5])}."
                )
            for name, value in state[kind].items():
                own[name].copy_(value)
        self.updates = int(state["updates"])


def _wide(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    wide = torch.promote_types(tensor.dtype, dtype)
    return tensor.detach().to(wide, copy=True)
