"""Parameters of which each process has a share (DTensor): this process's part, and sums over all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


def is_shared(tensor: Tensor) -> bool:
    """Whether each process has a part of the tensor only."""
    return hasattr(tensor, "to_local")


def own_share(tensor: Tensor) -> Tensor:
    """This process's part of a shared tensor, in the same memory; any other tensor as it is."""
    part = getattr(tensor, "to_local", None)
    return tensor if part is None else part()


def over_shares(parameters: Iterable[Tensor], norm: Tensor) -> Tensor:
    """A 2-norm over all processes' shares, from that over this one's, where parameters are shared. All
    processes have to call it.

    Taken in float64: no square of a float32 norm overflows there.
    """
    if not any(is_shared(p) for p in parameters):
        return norm
    total = norm.to(torch.float64).square()
    distributed.all_reduce(total)
    return total.sqrt().to(norm.dtype)


def gather_on_first(value: T) -> list[T] | None:
    """What each process gave, by rank, on rank 0; None on the others. Values are pickled. All processes have
    to call it."""
    if distributed.get_rank() != 0:
        distributed.gather_object(value, dst=0)
        return None
    found: list[T] = [value] * distributed.get_world_size()
    distributed.gather_object(value, found, dst=0)
    return found
