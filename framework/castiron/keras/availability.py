"""What a policy may declare that TensorFlow cannot run; refused by name, never replaced."""

from __future__ import annotations

from typing import Any

from castiron.diagnostics import Finding, Place, PlanError, finding
from castiron.keras.modules import walk
from castiron.policy import Plan
from castiron.training.availability import float8_products, tf32_of_some, wide_islands


def check_available(model: Any, plan: Plan) -> None:
    """Raises PlanError (L210) for each thing that the plan declares and this wing cannot apply."""
    found = [
        *wide_islands(plan, "TensorFlow", expected="float32 or null"),
        *float8_products(plan, "TensorFlow", "Keras only simulates float8 products"),
        *tf32_of_some(plan, "TensorFlow"),
        *_quantized(model),
    ]
    if found:
        raise PlanError(found)


def _quantized(model: Any) -> list[Finding]:
    found = [(path, layer) for path, layer in walk(model) if layer.quantization_mode is not None]
    if not found:
        return []
    path, layer = found[0]
    return [
        finding(
            "L210",
            f"a {type(layer).__name__} is quantised: its variables are not numbers of a format",
            place=Place(module=path),
            expected="layers that are not quantised",
            received=f"quantization {layer.quantization_mode}",
            remedy="Apply the policy before model.quantize, and train before that.",
            count=len(found),
        )
    ]
