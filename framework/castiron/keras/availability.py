"""What a policy may declare that TensorFlow cannot run; refused by name, never replaced."""

from __future__ import annotations

from typing import Any

from castiron.diagnostics import Finding, Place, PlanError, finding
from castiron.keras.modules import walk
from castiron.policy import Plan

_PRODUCTS = ("matmul", "conv", "lstm", "gru", "rnn", "attention")


def check_available(model: Any, plan: Plan) -> None:
    """Raises PlanError (L210) for each thing that the plan declares and this wing cannot apply."""
    found = [*_islands(plan), *_float8(plan), *_tf32(plan), *_quantized(model)]
    if found:
        raise PlanError(found)


def _islands(plan: Plan) -> list[Finding]:
    policy = plan.policy
    wider = [
        (name, wide)
        for name in ("softmax", "normalization", "reductions", "exponentials")
        if (wide := getattr(policy.islands, name)) == "float64" and policy.compute != "float64"
    ]
    return [
        finding(
            "L210",
            f"islands in {wide} inside compute {policy.compute} are not available in TensorFlow",
            place=Place(key=f"precision.islands.{name}"),
            expected="float32 or null",
            received=wide,
            remedy=f"Set islands.{name} to float32, or compute the whole model in float64.",
        )
        for name, wide in wider
    ]


def _float8(plan: Plan) -> list[Finding]:
    rows = [row for row in plan.rows if row.compute.startswith("float8")]
    if not rows:
        return []
    return [
        finding(
            "L210",
            f"compute {rows[0].compute} is not available in castiron's TensorFlow wing: Keras only simulates "
            "float8 products",
            place=Place(module=rows[0].path),
            expected="compute bfloat16, float16, float32, tf32 or float64",
            received=rows[0].compute,
            remedy="Use precision: bf16-mixed.",
            count=len(rows),
        )
    ]


def _tf32(plan: Plan) -> list[Finding]:
    products = [row for row in plan.rows if row.family in _PRODUCTS]
    tf32 = [row for row in products if row.compute == "tf32"]
    full = [row for row in products if row.compute == "float32"]
    if not tf32 or not full:
        return []
    return [
        finding(
            "L210",
            "tf32 is a switch of the whole process in TensorFlow: some layers cannot use it and others not",
            place=Place(module=full[0].path),
            expected="tf32 for every layer, or for none",
            received=f"tf32 for {len(tf32)} layers, float32 for {len(full)}",
            remedy="Declare compute float32 for the model, or drop the layer rule.",
        )
    ]


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
