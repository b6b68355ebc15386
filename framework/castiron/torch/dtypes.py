"""Names of number formats and the torch dtypes they stand for."""

from __future__ import annotations

from functools import cache

import torch

from castiron.formats import number_format

NARROW: frozenset[torch.dtype] = frozenset({torch.bfloat16, torch.float16})
"""Formats of 16 bits: what autocast computes in, and what an island widens."""


@cache
def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a format; tf32 is stored as float32.

    Raises:
        ValueError: no such format, or torch has no dtype for it.
    """
    found = getattr(torch, number_format(name).torch_name or "", None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"Expected a format that torch can store. Received {name!r}.")
    return found


def dtype_name(dtype: torch.dtype) -> str:
    """castiron's name of a torch dtype: `torch.bfloat16` is `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def is_narrower(dtype: torch.dtype, than: torch.dtype) -> bool:
    """Whether floating-point `dtype` has fewer bits than `than`."""
    return dtype.is_floating_point and dtype.itemsize < than.itemsize
