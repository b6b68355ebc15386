"""Example inputs for torch from a line of text (`training.example_specs`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from castiron.formats import number_format
from castiron.training.example_specs import read_specs


def example(specs: Sequence[str]) -> Any:
    """A batch of tensors of these formats and shapes: one, a tuple, or a mapping where all have names.

    Floats are drawn from a normal distribution, integers are below the number after `<` (2 by default).

    Raises:
        ConfigError: a spec cannot be read (X820).
    """
    return read_specs(specs, _tensor)


def _tensor(name: str, shape: list[int], below: int) -> Tensor:
    dtype = getattr(torch, number_format(name).torch_name or "")
    generator = torch.Generator().manual_seed(0)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(below, shape, generator=generator).to(dtype)
