"""What a planted fault is made of."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

CASES: list[tuple[str, str, Callable[[], dict[str, Any]]]] = []


def case(code: str, policy: Any = "float32") -> Callable[[Any], Any]:
    """A case: a function that gives the arguments of `audit`; `# fault` marks the line."""

    def keep(make: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
        CASES.append((code, policy, make))
        return make

    return keep


def net(forward: Callable[..., Any], **parts: Any) -> nn.Module:
    """A module of these parts (modules, parameters, buffers as tensors) and this forward; `head` is there."""
    model = nn.Module()
    model.head = nn.Linear(8, 4)
    for name, part in parts.items():
        if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
            model.register_buffer(name, part)
        else:
            setattr(model, name, part)
    model.forward = types.MethodType(forward, model)
    return model


def x() -> torch.Tensor:
    return torch.randn(16, 8)


def mse(outputs: Any, batch: Any) -> Any:
    return outputs.float().square().mean()
