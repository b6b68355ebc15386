"""Tensors as replay sees them: sound, masked on purpose, or bad; and what they held."""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from castiron.torch.dtypes import dtype_name
from castiron.training.incident import TensorStatistics

_LARGE = 1 << 12


class State(IntEnum):
    """How good a tensor's values are."""

    GOOD = 0
    """All finite."""
    MASKED = 1
    """Infinite where somebody put an infinity on purpose: a mask of -inf. No NaN."""
    BAD = 2
    """NaN, or an infinity that nobody asked for."""


def numbers(tensor: Tensor) -> Tensor | None:
    """The floating-point numbers of a tensor, real and dense; None where it has none."""
    if tensor.is_sparse:
        tensor = tensor.detach()
        tensor = tensor._values() if tensor.is_coalesced() else tensor.coalesce()._values()
    if tensor.layout is not torch.strided or tensor.device.type == "meta":
        return None
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.detach().resolve_conj())
    return tensor.detach() if tensor.is_floating_point() and tensor.numel() else None


@torch.no_grad()
def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are finite. Waits for the device."""
    values = numbers(tensor)
    if values is None:
        return True
    if values.dtype.itemsize == 1:  # float8 has no isfinite
        values = values.float()
    if values.is_cpu and values.numel() >= _LARGE:  # a sum reads once; it may overflow, but not hide anything
        total = values.sum(dtype=torch.float64 if values.dtype is torch.float64 else torch.float32)
        if math.isfinite(total.item()):
            return True
    return bool(values.isfinite().all())


@torch.no_grad()
def state_of(tensor: Tensor, *, masks: bool) -> State:
    """State of a tensor by its values alone.

    Args:
        masks: whether infinities without NaN count as put there on purpose.
    """
    if is_finite(tensor):
        return State.GOOD
    if not masks:
        return State.BAD
    values = numbers(tensor)
    assert values is not None
    return State.BAD if values.isnan().any() else State.MASKED


@torch.no_grad()
def state_of_data(tensor: Tensor) -> State:
    """State of a tensor of the batch: infinities are a mask only beside zeros, as in one that is added."""
    state = state_of(tensor, masks=True)
    if state is not State.MASKED:
        return state
    values = numbers(tensor)
    assert values is not None
    added = (values == 0) | values.isneginf()
    return State.MASKED if bool(added.all()) else State.BAD


@torch.no_grad()
def statistics(name: str, tensor: Tensor) -> TensorStatistics:
    """What a tensor held: range of its finite values, counts of the rest."""
    record: dict[str, Any] = {
        "name": name,
        "dtype": dtype_name(tensor.dtype),
        "shape": tuple(tensor.shape),
    }
    values = numbers(tensor)
    if values is None:
        if tensor.numel() and not tensor.dtype.is_floating_point and not tensor.dtype.is_complex:
            whole = tensor.detach().to(torch.int64)
            record |= {"min": whole.min().item(), "max": whole.max().item()}
            record["zero"] = int((whole == 0).sum())
        return TensorStatistics(**record)
    tiny = torch.finfo(values.dtype).smallest_normal
    values = values.double() if values.dtype is torch.float64 else values.float()
    finite = values[values.isfinite()]
    if finite.numel():
        record |= {"min": finite.min().item(), "max": finite.max().item()}
    record["nan"] = int(values.isnan().sum())
    record["posinf"] = int(values.isposinf().sum())
    record["neginf"] = int(values.isneginf().sum())
    record["zero"] = int((values == 0).sum())
    record["subnormal"] = int(((values != 0) & (values.abs() < tiny)).sum())
    return TensorStatistics(**record)


@torch.no_grad()
def bad_along(tensor: Tensor, dim: int, *, infinities: bool = False) -> list[int]:
    """Positions along a dimension where something is NaN, or infinite where nothing is NaN.

    Args:
        infinities: infinite ones in any case. Beside NaN they may be masks.
    """
    values = numbers(tensor)
    if values is None:
        return []
    odd = ~values.isfinite() if infinities else values.isnan()
    if not odd.any():
        odd = values.isinf()
    others = [d for d in range(values.dim()) if d != dim]
    hit = odd.any(dim=others) if others else odd
    return [int(i) for i in hit.nonzero().flatten()]


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The tensors of nested tuples, lists, mappings and objects made of tensors (packed sequences)."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from tensors_in(value)
    elif isinstance(tree, (tuple, list)):
        for value in tree:
            yield from tensors_in(value)


def named_tensors(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a tree with the path that leads to them: `x`, `inputs.ids`, `0`."""
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from named_tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, (tuple, list)):
        fields = getattr(tree, "_fields", None) or range(len(tree))
        for key, value in zip(fields, tree, strict=True):
            yield from named_tensors(value, f"{name}.{key}" if name else str(key))


def has_infinite_number(tree: Any) -> bool:
    """Whether a plain number among the arguments is infinite: somebody asked for it."""
    if isinstance(tree, float):
        return tree in (float("inf"), float("-inf"))
    if isinstance(tree, dict):
        return any(has_infinite_number(v) for v in tree.values())
    return isinstance(tree, (tuple, list)) and any(has_infinite_number(v) for v in tree)
