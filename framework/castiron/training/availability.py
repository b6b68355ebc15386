"""What a policy may declare that a framework cannot run: refused by name (L210), never replaced."""

from __future__ import annotations

from castiron.diagnostics import Finding, Place, finding
from castiron.policy import Plan

_PRODUCTS = ("matmul", "conv", "lstm", "gru", "rnn", "attention")


def wide_islands(plan: Plan, framework: str, expected: str) -> list[Finding]:
    """Islands in float64 inside a narrower computation."""
    policy = plan.policy
    wider = [
        (name, wide)
        for name in ("softmax", "normalization", "reductions", "exponentials")
        if (wide := getattr(policy.islands, name)) == "float64" and policy.compute != "float64"
    ]
    return [
        finding(
            "L210",
            f"islands in {wide} inside compute {policy.compute} are not available in {framework}",
            place=Place(key=f"precision.islands.{name}"),
            expected=expected,
            received=wide,
            remedy=f"Set islands.{name} to float32, or compute the whole model in float64.",
        )
        for name, wide in wider
    ]


def float8_products(plan: Plan, wing: str, because: str) -> list[Finding]:
    """Layers that compute in float8."""
    rows = [row for row in plan.rows if row.compute.startswith("float8")]
    if not rows:
        return []
    return [
        finding(
            "L210",
            f"compute {rows[0].compute} is not available in castiron's {wing} wing: {because}",
            place=Place(module=rows[0].path),
            expected="compute bfloat16, float16, float32, tf32 or float64",
            received=rows[0].compute,
            remedy="Use precision: bf16-mixed.",
            count=len(rows),
        )
    ]


def tf32_of_some(plan: Plan, framework: str) -> list[Finding]:
    """Products in tf32 beside products in float32."""
    products = [row for row in plan.rows if row.family in _PRODUCTS]
    tf32 = [row for row in products if row.compute == "tf32"]
    full = [row for row in products if row.compute == "float32"]
    if not tf32 or not full:
        return []
    return [
        finding(
            "L210",
            f"tf32 is a switch of the whole process in {framework}: some layers cannot use it and others not",
            place=Place(module=full[0].path),
            expected="tf32 for every layer, or for none",
            received=f"tf32 for {len(tf32)} layers, float32 for {len(full)}",
            remedy="Declare compute float32 for the model, or drop the layer rule.",
        )
    ]
