"""The numbers in tensors, as they are measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from castiron.torch.shares import own_share


def join(tensors: Sequence[Tensor]) -> Tensor:
    """The elements of all tensors, one after the other."""
    flat = [values_of(t).reshape(-1) for t in tensors]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def values_of(tensor: Tensor) -> Tensor:
    """The numbers of a tensor: those stored where it is sparse, without gradients."""
    tensor = own_share(tensor.detach())
    if tensor.is_sparse:
        tensor = tensor._values() if tensor.is_coalesced() else tensor.coalesce()._values()
    return tensor
