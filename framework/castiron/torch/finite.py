"""Whether tensors are finite, found out by reading them once."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from castiron.torch.dtypes import NARROW
from castiron.torch.scaling_kernels import multiply_and_check
from castiron.torch.shares import own_share

LARGE = 1 << 15
"""Elements from which on the product of a tensor with itself is cheaper than the multi-tensor kernel, which
writes too."""


def not_finite(tensors: Iterable[Tensor]) -> Tensor:
    """1.0 where an element of any tensor is NaN or infinite, else 0.0: float32, 0-dim, on the device of the
    tensors. Waits for no device but a CPU.

    On a CPU large tensors are multiplied with themselves (a dot product), which reads them once; a norm of
    infinite order takes forty times as long there. Where that is not finite they are summed, and where that
    is not either they are looked at element by element, as finite values may overflow in both. All others go
    through torch's multi-tensor kernel of loss scaling, with a scale of 1.
    """
    bad, flags = look(tensors)
    return torch.ones(()) if bad else any_of(flags)


@torch.no_grad()
def look(tensors: Iterable[Tensor]) -> tuple[bool, list[Tensor]]:
    """Whether the host has seen one that is not finite; the answers that are on devices."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        values = values_of(tensor)
        if values.is_complex():
            values = torch.view_as_real(values)
        size = values.numel()
        if size == 0 or not values.is_floating_point():
            continue
        if values.is_cpu and (size == 1 or size >= LARGE):
            if not is_finite(values):
                return True, []
        else:
            groups.setdefault((values.device, values.dtype), []).append(values)
    flags: list[Tensor] = []
    for (device, dtype), group in groups.items():
        if dtype is torch.float64 or not all(v.is_contiguous() for v in group):
            flags.append(torch.stack([~v.isfinite().all() for v in group]).any().float())
            continue
        found = torch.zeros((), dtype=torch.float32, device=device)
        multiply_and_check(group, found, torch.ones((), dtype=torch.float32, device=device))
        flags.append(found)
    return False, flags


def is_finite(values: Tensor) -> bool:
    """Whether all elements of a tensor on a CPU are finite."""
    if values.numel() == 1:
        return math.isfinite(values.item())
    if values.dtype not in NARROW and values.is_contiguous():
        # BLAS reads at twice the pace of a sum; squares overflow earlier, so that it is asked first only
        flat = values.detach().view(-1)
        if math.isfinite(torch.dot(flat, flat).item()):
            return True
    total = values.sum(dtype=torch.float32 if values.dtype in NARROW else None).item()
    return math.isfinite(total) or bool(values.isfinite().all())


def any_of(flags: list[Tensor]) -> Tensor:
    """1.0 where one of them is, on the device of the first."""
    if len(flags) < 2:
        return flags[0] if flags else torch.zeros(())
    return torch.stack([f.to(flags[0].device, non_blocking=True) for f in flags]).amax()


def values_of(tensor: Tensor) -> Tensor:
    """The numbers of a tensor, those stored where it is sparse."""
    if not tensor.is_sparse:
        return own_share(tensor)
    tensor = tensor.detach()
    return tensor._values() if tensor.is_coalesced() else tensor.coalesce()._values()
