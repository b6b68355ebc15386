"""Parameters of which each process has a share (DTensor): this process's part, and sums over all of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed


def own_share(tensor: Tensor) -> Tensor:
    """This process's part of a shared tensor, in the same memory; any other tensor as it is."""
    part = getattr(tensor, "to_local", None)
    return tensor if part is None else part()


def over_shares(parameters: Iterable[Tensor], norm: Tensor) -> Tensor:
    """A 2-norm over all processes' shares, from that over this one's, where parameters are shared. All
    processes have to call it.

    Taken in float64: no square of a float32 norm overflows there.
    """
    if not any(hasattr(p, "to_local") for p in parameters):
        return norm
    total = norm.to(torch.float64).square()
    distributed.all_reduce(total)
    return total.sqrt().to(norm.dtype)
