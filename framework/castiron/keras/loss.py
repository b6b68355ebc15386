"""The loss is taken in the declared dtype, whatever the outputs and the targets come in."""

from __future__ import annotations

from typing import Any

from castiron.diagnostics import Finding
from castiron.keras.boundaries import cast_floats
from castiron.keras.dtypes import dtype_name, tensorflow_name
from castiron.policy import PrecisionPolicy
from castiron.training.loss_format import wrong_loss


def to_loss_dtype(tree: Any, dtype: str) -> Any:
    """Every floating-point tensor in the loss dtype; class numbers, masks and others as they are.

    For outputs and targets before a loss: Keras's functional losses compute in what they are given, and a
    float16 mean squared error of 300 is infinite.
    """
    return cast_floats(tree, tensorflow_name(dtype))


def check_loss(loss: Any, policy: PrecisionPolicy) -> Finding | None:
    """Whether the loss has the declared format; what the model does before it is for the audit.

    Returns:
        F310 as a warning where it has not and the policy only warns, else None.

    Raises:
        PlanError: it has not, and the policy is strict (F310).
    """
    if policy.enforce.level == "off" or dtype_name(loss.dtype) == tensorflow_name(policy.loss):
        return None
    return wrong_loss(policy, dtype_name(loss.dtype))
