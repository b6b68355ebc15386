"""What an optimizer's step did to the parameters, on a sample of their elements: memory does not grow with
them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from castiron.health.dynamics import SecondMoment, Update, ratio, second_moment
from castiron.health.snapshot import LayerUpdate
from castiron.torch.dtypes import dtype_name
from castiron.torch.health.tensors import values_of
from castiron.torch.updates import guard_of

_SAMPLE = 2048
"""Elements of a parameter, at most, whose update is looked at."""

Group = dict[str, Any]


@dataclass(slots=True)
class _Part:
    """Parameters of one group of an optimizer, between the moments before and after its step. Vectors hold
    the samples of all of them, one after the other."""

    optimizer: Optimizer
    group: Group
    rate: float
    parameters: list[Tensor]
    layers: list[str]
    sizes: list[int]
    before: Tensor
    """Weights; of the master copies, where there are any."""
    gradients: Tensor


class StepWatch:
    """Compares samples of the parameters before and after an optimizer's step."""

    def __init__(self, model: nn.Module, optimizers: Iterable[Optimizer]) -> None:
        self._optimizers = tuple(optimizers)
        self._layers: dict[Any, str] = {p: name.rpartition(".")[0] for name, p in model.named_parameters()}
        self._parts: list[_Part] = []

    def before(self) -> None:
        """Gradients are there; the optimizers have not stepped."""
        self._parts = []
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                formats: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
                for p in group["params"]:
                    if p in self._layers and p.grad is not None and not p.grad.is_sparse and p.numel():
                        weights = _weights(optimizer, p)
                        formats.setdefault((weights.dtype, weights.device), []).append(p)
                for parameters in formats.values():
                    samples = [_sample(_weights(optimizer, p)) for p in parameters]
                    self._parts.append(
                        _Part(
                            optimizer,
                            group,
                            float(group["lr"]),
                            parameters,
                            [self._layers[p] for p in parameters],
                            [t.numel() for t in samples],
                            torch.cat(samples) if len(samples) > 1 else samples[0].clone(),
                            torch.cat([_sample(p.grad).float() for p in parameters if p.grad is not None]),
                        )
                    )

    def after(self) -> tuple[dict[str, LayerUpdate], dict[str, SecondMoment], dict[str, Tensor]]:
        """→ what happened to each layer's parameters, to Adam's second moments, and the exact updates
        (samples). Waits for the device."""
        sums: dict[str, _Sums] = {}
        moments: dict[str, SecondMoment] = {}
        for part in self._parts:
            after = torch.cat([_sample(_weights(part.optimizer, p)) for p in part.parameters])
            change = exact_update(part)
            exact = change is not None
            made = after.double() - part.before.double() if change is None else change
            # an algorithm that is not known here: what has a gradient was to change
            wanted = made != 0 if exact else (part.gradients != 0) & part.gradients.isfinite()
            lost = wanted & (after == part.before)
            first, second = _states(part, "exp_avg"), _states(part, "exp_avg_sq")
            vectors = [made, part.before.double(), wanted.double(), lost.double()]
            if first is not None and second is not None:
                vectors += [first.double(), second.double()]
            host = torch.stack(vectors).cpu().numpy()
            guard = guard_of(part.optimizer)
            stochastic = guard is not None and guard.rounds_randomly
            position = 0
            for layer, size in zip(part.layers, part.sizes, strict=True):
                u, w, wants, loses, *both = host[:, position : position + size]
                position += size
                known = sums.setdefault(layer, _Sums(dtype_name(after.dtype), stochastic, part.rate))
                known.add(u, w, int(wants.sum()), int(loses.sum()))
                if both:
                    found, old = second_moment(*both), moments.get(layer)
                    moments[layer] = found if old is None else _sum(old, found)
        self._parts = []
        updates = {layer: known.total() for layer, known in sums.items()}
        samples = {layer: torch.from_numpy(np.concatenate(known.changes)) for layer, known in sums.items()}
        return updates, moments, samples

    def discard(self) -> None:
        """The step was held: there is nothing to compare."""
        self._parts = []


@dataclass(slots=True)
class _Sums:
    """What was seen of a layer's parameters so far."""

    dtype: str
    stochastic: bool
    rate: float
    wanted: int = 0
    lost: int = 0
    changes: list[np.ndarray] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)

    def add(self, change: np.ndarray, weights: np.ndarray, wanted: int, lost: int) -> None:
        self.changes.append(change)
        self.weights.append(weights)
        self.wanted += wanted
        self.lost += lost

    def total(self) -> LayerUpdate:
        weights = np.concatenate(self.weights)
        found = ratio(np.concatenate(self.changes), weights)
        norm = float(np.linalg.norm(weights))
        return LayerUpdate(
            Update(self.wanted, self.lost, found), self.dtype, self.stochastic, self.rate, norm
        )


@torch.no_grad()
def exact_update(part: _Part) -> Tensor | None:
    """The updates that the optimizer wanted, in float64 from its state after the step; None where the
    algorithm is not known here.

    Adam and AdamW (Kingma & Ba 2015; Loshchilov & Hutter 2019):
    u = -lr · (m / (1 - β₁ᵗ)) / (√(v / (1 - β₂ᵗ)) + ε) [- lr · λ · w]; SGD: u = -lr · (momentum buffer, or g).
    """
    group, rate, kind = part.group, part.rate, type(part.optimizer)
    w = part.before.double()
    if kind in (Adam, AdamW):
        m = _states(part, "exp_avg")
        v = _states(part, "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq")
        steps = {float(state_of(part.optimizer, p).get("step", 0)) for p in part.parameters}
        if m is None or v is None or len(steps) > 1:
            return None
        t = steps.pop()
        first, second = (1 - float(beta) ** t for beta in group["betas"])
        sign = 1.0 if group.get("maximize") else -1.0
        u = sign * rate * (m.double() / first) / ((v.double() / second).sqrt() + group["eps"])
        if group.get("decoupled_weight_decay", kind is AdamW):
            u = u - rate * group["weight_decay"] * w
        wanted: Tensor = u
        return wanted
    if kind is SGD and not group["maximize"]:
        if any(p.grad is None for p in part.parameters):
            return None
        g = torch.cat([_sample(p.grad).double() for p in part.parameters if p.grad is not None])
        g = g + group["weight_decay"] * w
        buffer = _states(part, "momentum_buffer")
        if buffer is not None:
            g = g + group["momentum"] * buffer.double() if group["nesterov"] else buffer.double()
        moved: Tensor = -rate * g
        return moved
    return None


def _states(part: _Part, key: str) -> Tensor | None:
    """The samples of a state of all parameters; None where one of them has none."""
    found = [state_of(part.optimizer, p).get(key) for p in part.parameters]
    if not all(
        isinstance(t, Tensor) and t.numel() == p.numel() for t, p in zip(found, part.parameters, strict=True)
    ):
        return None
    return torch.cat([_sample(t) for t in found if t is not None])


def _weights(optimizer: Optimizer, parameter: Tensor) -> Tensor:
    """What the optimizer updates: the master copy of a parameter, where there is one."""
    guard = guard_of(optimizer)
    master = guard.master(parameter) if guard is not None else None
    return values_of(parameter if master is None else master)


def state_of(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any]:
    """The optimizer's state of a parameter of the model."""
    guard = guard_of(optimizer)
    found: dict[str, Any] = (
        guard.state_of(parameter) if guard is not None else optimizer.state.get(parameter, {})
    )
    return found


def _sample(tensor: Tensor) -> Tensor:
    flat = values_of(tensor).reshape(-1)
    return flat[:: max(-(-flat.numel() // _SAMPLE), 1)]


def _sum(a: SecondMoment, b: SecondMoment) -> SecondMoment:
    return SecondMoment(
        a.moving + b.moving, a.underflow + b.underflow, a.overflow + b.overflow, a.size + b.size
    )
