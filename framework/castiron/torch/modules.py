"""A torch model as plain data: which layers it has, of what kind, and what they store."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from castiron.diagnostics import Place, PlanError, finding
from castiron.policy import Family, LayerInfo, TensorInfo
from castiron.torch.dtypes import dtype_name

RECURRENT: tuple[type[nn.Module], ...] = (nn.RNNBase, nn.RNNCellBase)
"""Layers that hand a state from one time step to the next."""

_FAMILIES: tuple[tuple[Family, tuple[type[nn.Module], ...]], ...] = (
    ("lstm", (nn.LSTM, nn.LSTMCell)),
    ("gru", (nn.GRU, nn.GRUCell)),
    ("rnn", (nn.RNNBase, nn.RNNCellBase)),
    ("attention", (nn.MultiheadAttention,)),
    ("matmul", (nn.Linear, nn.Bilinear)),
    ("conv", (nn.modules.conv._ConvNd,)),
    (
        "normalization",
        (
            nn.modules.batchnorm._NormBase,
            nn.LayerNorm,
            nn.GroupNorm,
            nn.RMSNorm,
            nn.LocalResponseNorm,
            nn.CrossMapLRN2d,
        ),
    ),
    ("embedding", (nn.Embedding, nn.EmbeddingBag)),
    ("softmax", (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d)),
)


def family(module: nn.Module) -> Family | None:
    """The kind of operation of a layer; None for containers, activations and layers of a user's own."""
    for name, classes in _FAMILIES:
        if isinstance(module, classes):
            return name
    return None


def describe(model: nn.Module) -> list[LayerInfo]:
    """Every module of a model, outermost first, with what it holds itself.

    A module that is reachable by two paths is listed under both. A tensor that is held twice (tied
    parameters, a shared layer) says by `same_as` the name under which it was met first. Meta tensors are
    described like any other.

    Raises:
        PlanError: a lazy layer has parameters without a shape or format yet (L209).
    """
    first: dict[int, str] = {}
    layers, lazy = [], []
    for path, module in walk(model):
        tensors: dict[str, list[TensorInfo]] = {"parameters": [], "buffers": []}
        held = (("parameters", module._parameters), ("buffers", module._buffers))
        for kind, own in held:
            for name, tensor in own.items():
                if tensor is None:
                    continue
                full = f"{path}.{name}" if path else name
                if is_lazy(tensor):
                    lazy.append((path, type(module).__name__, full))
                    continue
                known = first.setdefault(id(tensor), full)
                tensors[kind].append(
                    TensorInfo(
                        name=full,
                        dtype=dtype_name(tensor.dtype),
                        shape=tuple(tensor.shape),
                        trainable=tensor.requires_grad,
                        same_as=None if known == full else known,
                    )
                )
        names = class_names(module)
        layers.append(
            LayerInfo(
                path=path,
                type=names[0],
                bases=names[1:],
                family=family(module),
                parameters=tuple(tensors["parameters"]),
                buffers=tuple(tensors["buffers"]),
            )
        )
    if lazy:
        raise PlanError(
            finding(
                "L209",
                f"parameter '{name}' of a {cls} has no shape yet",
                place=Place(module=path),
                expected="initialised parameters",
                received=f"an uninitialised (lazy) parameter '{name}'",
            )
            for path, cls, name in lazy
        )
    return layers


def walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every path of a model with its module, outermost first; a shared module comes under each path."""
    yield from model.named_modules(remove_duplicate=False)


def class_names(module: nn.Module) -> tuple[str, ...]:
    """The module's class and those it inherits from, nearest first, up to `nn.Module`.

    The class that `torch.nn.utils.parametrize` puts in front of a layer's own is left out.
    """
    classes: list[type] = list(type(module).__mro__)
    if parametrize.is_parametrized(module):
        classes = classes[1:]
    return tuple(c.__name__ for c in classes[: classes.index(nn.Module)]) or ("Module",)


def devices_of(model: nn.Module) -> set[torch.device]:
    """The devices that hold the model's tensors."""
    return {t.device for t in (*model.parameters(), *model.buffers())}
