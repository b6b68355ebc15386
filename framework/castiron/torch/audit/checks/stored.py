"""F312: parameters, buffers and gradients after the step."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from castiron.diagnostics import Finding, Place, finding
from castiron.torch.audit.context import Context
from castiron.torch.dtypes import dtype_name


def check(context: Context, root: nn.Module) -> Iterator[Finding]:
    """Hold what the copy stores after the step against the plan."""
    plan = context.plan
    for kind, declared, tensors in (
        ("parameter", plan.parameters(), dict(root.named_parameters(remove_duplicate=False))),
        ("buffer", plan.buffers(), dict(root.named_buffers(remove_duplicate=False))),
    ):
        for name, tensor in tensors.items():
            if not tensor.is_floating_point():
                continue
            expected = declared.get(name)
            received = dtype_name(tensor.dtype)
            if expected is None:
                said = f"{kind} '{name}' was made in the forward pass: the plan does not know it"
            elif received != expected:
                said = f"{kind} '{name}' is not as planned after the step"
            else:
                grad = getattr(tensor, "grad", None) if kind == "parameter" else None
                if grad is None or dtype_name(grad.dtype) == expected:
                    continue
                said, received = f"the gradient of '{name}' is not as planned", dtype_name(grad.dtype)
            yield finding(
                "F312",
                said,
                place=Place(module=name.rpartition(".")[0]),
                expected=expected or "parameters and buffers made in __init__",
                received=received,
            )
