"""What an optimizer's step did to the parameters, on a sample of their elements: memory does not grow with
them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from castiron.health.dynamics import SecondMoment, Update, ratio, second_moment
from castiron.health.snapshot import LayerUpdate
from castiron.torch.dtypes import dtype_name
from castiron.torch.updates import guard_of

_SAMPLE = 2048
"""Elements of a parameter, at most, whose update is looked at."""

Group = dict[str, Any]


@dataclass(slots=True)
class _Watched:
    """A parameter between the moments before and after an optimizer's step."""

    layer: str
    parameter: Tensor
    optimizer: Optimizer
    group: Group
    rate: float
    before: Tensor
    """A sample of the weights (of the master copy, where there is one)."""
    gradient: Tensor


class StepWatch:
    """Compares samples of the parameters before and after an optimizer's step."""

    def __init__(self, model: nn.Module, optimizers: Iterable[Optimizer]) -> None:
        self._model, self._optimizers = model, tuple(optimizers)
        self._watched: list[_Watched] = []

    def before(self) -> None:
        """Gradients are there; the optimizers have not stepped."""
        self._watched = []
        layers = {p: name.rpartition(".")[0] for name, p in self._model.named_parameters()}
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if p.grad is None or p.grad.is_sparse or not p.numel() or p not in layers:
                        continue
                    weights = _weights(optimizer, p)
                    rate = float(group["lr"])
                    self._watched.append(
                        _Watched(
                            layers[p], p, optimizer, group, rate, _sample(weights).clone(), _sample(p.grad)
                        )
                    )

    def after(self) -> tuple[dict[str, LayerUpdate], dict[str, SecondMoment], dict[str, Tensor]]:
        """→ what happened to each layer's parameters, to Adam's second moments, and the exact updates
        (float64 samples). Waits for the device."""
        updates: dict[str, LayerUpdate] = {}
        moments: dict[str, SecondMoment] = {}
        changes: dict[str, list[np.ndarray]] = {}
        weights: dict[str, list[np.ndarray]] = {}
        for watched in self._watched:
            before = _host(watched.before)
            after = _host(_sample(_weights(watched.optimizer, watched.parameter)))
            state = state_of(watched.optimizer, watched.parameter)
            gradient = watched.parameter.grad
            change = exact_update(watched, state, None if gradient is None else _sample(gradient))
            made = after - before if change is None else _host(change)
            dtype = dtype_name(_weights(watched.optimizer, watched.parameter).dtype)
            layer = watched.layer
            moved = _compared(before, after, made, change is not None, _host(watched.gradient), dtype)
            known = updates.get(layer)
            if known is not None:
                moved = Update(known.update.wanted + moved.wanted, known.update.lost + moved.lost, 0.0)
            changes.setdefault(layer, []).append(made)
            weights.setdefault(layer, []).append(before)
            guard = guard_of(watched.optimizer)
            stochastic = guard is not None and guard.rounds_randomly
            updates[layer] = LayerUpdate(moved, dtype, stochastic, watched.rate)
            if {"exp_avg", "exp_avg_sq"} <= state.keys():
                both = (_host(_sample(state[n])) for n in ("exp_avg", "exp_avg_sq"))
                found, old = second_moment(*both), moments.get(layer)
                moments[layer] = found if old is None else _sum(old, found)
        for layer, found_update in updates.items():
            change_ratio = ratio(np.concatenate(changes[layer]), np.concatenate(weights[layer]))
            u = found_update.update
            updates[layer] = LayerUpdate(
                Update(u.wanted, u.lost, change_ratio),
                found_update.dtype,
                found_update.stochastic,
                found_update.rate,
            )
        self._watched = []
        samples = {layer: torch.from_numpy(np.concatenate(parts)) for layer, parts in changes.items()}
        return updates, moments, samples

    def discard(self) -> None:
        """The step was held: there is nothing to compare."""
        self._watched = []


def _compared(
    before: np.ndarray, after: np.ndarray, made: np.ndarray, exact: bool, gradient: np.ndarray, dtype: str
) -> Update:
    """Lost is what was to change and is seen not to have changed."""
    if not exact:  # an algorithm that is not known here: what has a gradient was to change
        wanted = (gradient != 0) & np.isfinite(gradient)
        return Update(int(wanted.sum()), int((wanted & (before == after)).sum()), 0.0)
    wanted = made != 0
    return Update(int(wanted.sum()), int((wanted & (before == after)).sum()), 0.0)


@torch.no_grad()
def exact_update(watched: _Watched, state: dict[str, Any], gradient: Tensor | None) -> Tensor | None:
    """The update that the optimizer wanted, in float64 from its state after the step; None where the
    algorithm is not known here.

    Adam and AdamW (Kingma & Ba 2015; Loshchilov & Hutter 2019):
    u = -lr · (m / (1 - β₁ᵗ)) / (√(v / (1 - β₂ᵗ)) + ε) [- lr · λ · w]; SGD: u = -lr · (momentum buffer, or g).
    """
    group, rate = watched.group, watched.rate
    kind = type(watched.optimizer)
    sign = 1.0 if group.get("maximize") else -1.0
    w = watched.before.double()
    if kind in (Adam, AdamW) and "exp_avg" in state:
        m, v = _sample(state["exp_avg"]).double(), _sample(state["exp_avg_sq"]).double()
        if group.get("amsgrad"):
            v = _sample(state["max_exp_avg_sq"]).double()
        t = torch.as_tensor(state["step"], dtype=torch.float64).to(w.device)
        first, second = (1 - torch.exp(t * math.log(float(b))) if b else 1.0 for b in group["betas"])
        u = sign * rate * (m / first) / ((v / second).sqrt() + group["eps"])
        decoupled = group.get("decoupled_weight_decay", kind is AdamW)
        if decoupled:
            u = u - rate * group["weight_decay"] * w
        wanted: Tensor = u
        return wanted
    if kind is SGD and gradient is not None and not group["maximize"]:
        g = gradient.double() + group["weight_decay"] * w
        buffer = state.get("momentum_buffer")
        if buffer is not None:
            b = _sample(buffer).double()
            g = g + group["momentum"] * b if group["nesterov"] else b
        moved: Tensor = -rate * g
        return moved
    return None


def _weights(optimizer: Optimizer, parameter: Tensor) -> Tensor:
    """What the optimizer updates: the master copy of a parameter, where there is one."""
    guard = guard_of(optimizer)
    master = guard.master(parameter) if guard is not None else None
    return parameter.detach() if master is None else master


def state_of(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any]:
    """The optimizer's state of a parameter of the model."""
    guard = guard_of(optimizer)
    found: dict[str, Any] = (
        guard.state_of(parameter) if guard is not None else optimizer.state.get(parameter, {})
    )
    return found


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    return flat[:: max(-(-flat.numel() // _SAMPLE), 1)]


def _host(tensor: Tensor) -> np.ndarray:
    found: np.ndarray = tensor.detach().double().cpu().numpy()
    return found


def _sum(a: SecondMoment, b: SecondMoment) -> SecondMoment:
    return SecondMoment(
        a.moving + b.moving, a.underflow + b.underflow, a.overflow + b.overflow, a.size + b.size
    )
