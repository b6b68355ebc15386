"""The loss is taken in the declared dtype, whatever the outputs and the targets come in."""

from __future__ import annotations

from typing import Any

import torch

from castiron.torch.trees import map_tensors


def to_loss_dtype(tree: Any, dtype: torch.dtype) -> Any:
    """Every floating-point tensor in the loss dtype; class numbers, masks and others as they are.

    For outputs and targets before a loss: left alone, a float64 target makes the loss float64, and a float16
    one makes it float16, silently.
    """
    return map_tensors(
        lambda t: t.to(dtype) if t.dtype.is_floating_point and t.dtype is not dtype else t, tree
    )
