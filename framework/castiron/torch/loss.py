"""The loss is taken in the declared dtype, whatever the outputs and the targets come in."""

from __future__ import annotations

from typing import Any

import torch

from castiron.diagnostics import Finding
from castiron.policy import PrecisionPolicy
from castiron.torch.dtypes import dtype_name, torch_dtype
from castiron.torch.trees import map_tensors
from castiron.training.loss_format import wrong_loss


def to_loss_dtype(tree: Any, dtype: torch.dtype) -> Any:
    """Every floating-point tensor in the loss dtype; class numbers, masks and others as they are.

    For outputs and targets before a loss: left alone, a float64 target makes the loss float64, and a float16
    one makes it float16, silently.
    """
    return map_tensors(
        lambda t: t.to(dtype) if t.dtype.is_floating_point and t.dtype is not dtype else t, tree
    )


def check_loss(loss: torch.Tensor, policy: PrecisionPolicy) -> Finding | None:
    """Whether the loss has the declared format; what the model does before it is for the audit.

    Returns:
        F310 as a warning where it has not and the policy only warns, else None.

    Raises:
        PlanError: it has not, and the policy is strict (F310).
    """
    if policy.enforce.level == "off" or loss.dtype is torch_dtype(policy.loss):
        return None
    return wrong_loss(policy, dtype_name(loss.dtype))
