"""Gradient clipping by global norm, taken in the declared accumulate dtype."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from castiron.torch.dtypes import NARROW
from castiron.torch.shares import over_shares, own_share


@torch.no_grad()
def gradient_norm(parameters: Iterable[torch.Tensor], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The 2-norm over all gradients, a 0-dim tensor of `dtype` on the device of the first of them.

    Squares of float32 gradients beyond 1.8e19 overflow: on a CPU such a norm is taken again in float64; on
    other devices, where looking would wait for the device, it is infinite.
    """
    parameters = list(parameters)
    return over_shares(parameters, _norm(_gradients(parameters), dtype))


@torch.no_grad()
def clip_by_norm(
    parameters: Iterable[torch.Tensor],
    max_norm: float,
    dtype: torch.dtype = torch.float32,
    norm: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scale all gradients down, in place, so that their global norm is at most `max_norm`.

    Undo loss scaling first. Where the norm is not finite the gradients stay as they are: to multiply them
    with 0 or NaN would destroy what an incident is explained by (torch's `clip_grad_norm_` does).

    Args:
        parameters: those whose gradients are clipped together; without a gradient they do not count.
        max_norm: the largest norm, above 0.
        dtype: float32 or float64, the policy's accumulate dtype.
        norm: what `gradient_norm` gave for these gradients as they are; None: taken here.

    Returns:
        The norm before clipping, a 0-dim tensor of `dtype`.

    Raises:
        ValueError: max_norm is not above 0.
    """
    if not max_norm > 0:
        raise ValueError(f"Expected max_norm above 0. Received {max_norm}.")
    parameters = list(parameters)
    norm = gradient_norm(parameters, dtype) if norm is None else norm
    if norm.device.type == "cpu":  # to look costs nothing here, and most steps need no clipping
        value = norm.item()
        if math.isfinite(value) and value + 1e-6 > max_norm:
            for group in _by_kind(_gradients(parameters)):
                torch._foreach_mul_(group, max_norm / (value + 1e-6))
        return norm
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    factor = torch.where(norm.isfinite(), factor, 1.0)
    for group in _by_kind(_gradients(parameters)):
        torch._foreach_mul_(group, factor.to(device=group[0].device, dtype=_factor_dtype(group[0])))
    return norm


def _gradients(parameters: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The gradients' values; of sparse ones those that are stored, duplicates added up."""
    found = []
    for p in parameters:
        if p.grad is None:
            continue
        if p.grad.is_sparse:
            p.grad = p.grad.coalesce()
            found.append(p.grad._values())
        else:
            found.append(own_share(p.grad))
    return found


def _norm(gradients: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    if not gradients:
        return torch.zeros((), dtype=dtype)
    home = gradients[0].device
    norms: list[torch.Tensor] = []
    for group in _by_kind(gradients):
        found = _norms(group, dtype)
        there = group[0].device == home and found[0].dtype is dtype
        norms += found if there else [n.to(home, dtype) for n in found]
    total: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
    if home.type == "cpu" and dtype is torch.float32 and math.isinf(total.item()):
        exact = _norm(gradients, torch.float64)
        total = exact.to(dtype)  # infinite only where a gradient is, or where it is beyond float32
    return total


def _norms(group: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    if group[0].dtype is dtype:
        return list(torch._foreach_norm(group))
    if group[0].dtype in NARROW or dtype is torch.float64:
        return list(torch._foreach_norm(group, dtype=dtype))
    return list(torch._foreach_norm(group))


def _factor_dtype(gradient: torch.Tensor) -> torch.dtype:
    # a factor of 16 bits would round the clipping; multi-tensor products widen inside
    return torch.float32 if gradient.dtype in NARROW else gradient.dtype


def _by_kind(tensors: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    groups: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return list(groups.values())
