"""Optimizers from a config: fused where every parameter can be, with groups that are not decayed."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from castiron.torch.modules import family
from castiron.training.optimizer_settings import OptimizerSettings

_CLASSES: dict[str, type[Optimizer]] = {
    "adamw": AdamW,
    "adam": Adam,
    "sgd": SGD,
    "adagrad": Adagrad,
    "rmsprop": RMSprop,
}
_USES: dict[str, tuple[str, ...]] = {
    "adamw": ("betas", "eps"),
    "adam": ("betas", "eps"),
    "sgd": ("momentum", "nesterov"),
    "adagrad": ("eps",),
    "rmsprop": ("eps", "momentum"),
}


def build_optimizer(
    parameters: nn.Module | Iterable[Any], settings: OptimizerSettings, *, decay_all: bool = True
) -> Optimizer:
    """The optimizer that a config declares.

    Args:
        parameters: a model (its trainable parameters), or parameters, or parameter groups.
        settings: name, lr, weight_decay, and what the algorithm uses of betas, eps, momentum, nesterov.
        decay_all: False leaves biases, normalisation and embeddings of a model out of weight decay.

    Raises:
        ValueError: an unknown name, or nothing to train.
    """
    if settings.name not in _CLASSES:
        raise ValueError(f"Expected an optimizer ({', '.join(_CLASSES)}). Received {settings.name!r}.")
    if isinstance(parameters, nn.Module):
        groups = parameter_groups(parameters, settings.weight_decay, decay_all=decay_all)
    else:
        groups = list(parameters)
    tensors = [p for g in groups for p in (g["params"] if isinstance(g, dict) else [g])]
    if not tensors:
        raise ValueError("Expected parameters that require gradients. Received none.")
    arguments: dict[str, Any] = {key: getattr(settings, key) for key in _USES[settings.name]}
    arguments |= choose_kernel(settings.name, tensors, fused=settings.fused)
    make: Any = _CLASSES[settings.name]
    optimizer: Optimizer = make(groups, lr=settings.lr, weight_decay=settings.weight_decay, **arguments)
    return optimizer


def parameter_groups(model: nn.Module, weight_decay: float, *, decay_all: bool) -> list[dict[str, Any]]:
    """The model's trainable parameters in one group, or in two: decayed, and not.

    Not decayed are vectors and scalars (biases, gains) and everything of normalisation and embedding layers.
    """
    trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if decay_all or not weight_decay:
        return [{"params": [p for _, p in trainable]}] if trainable else []
    exempt = {
        id(p)
        for module in model.modules()
        if family(module) in ("normalization", "embedding")
        for p in module.parameters(recurse=False)
    }
    decayed = [p for _, p in trainable if p.dim() > 1 and id(p) not in exempt]
    kept = [p for _, p in trainable if p.dim() <= 1 or id(p) in exempt]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [g for g in groups if g["params"]]


def choose_kernel(name: str, parameters: list[torch.Tensor], *, fused: bool) -> dict[str, bool]:
    """`fused` where the algorithm and every parameter's device and format have it, else `foreach`."""
    if fused and all(p.is_floating_point() and can_fuse(name, p.device.type, p.dtype) for p in parameters):
        return {"fused": True}
    return {"foreach": True}


@functools.cache
def can_fuse(name: str, device_type: str, dtype: torch.dtype) -> bool:
    """Whether the algorithm has a kernel for all parameters at once there: found out by one tiny step."""
    if name == "rmsprop":
        return False
    parameter = torch.zeros(2, dtype=dtype, device=device_type, requires_grad=True)
    with contextlib.suppress(RuntimeError, NotImplementedError, TypeError, ValueError):
        parameter.grad = torch.zeros_like(parameter)
        make: Any = _CLASSES[name]
        make([parameter], lr=0.1, fused=True).step()
        return True
    return False
