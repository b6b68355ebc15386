"""What a policy may declare that torch cannot run; refused by name, never replaced."""

from __future__ import annotations

from torch import nn

from castiron.diagnostics import Finding, Place, PlanError, finding
from castiron.formats import is_wider
from castiron.policy import Plan
from castiron.torch.boundaries import ambient_dtype
from castiron.torch.modules import walk

_PRODUCTS = ("matmul", "conv", "lstm", "gru", "rnn", "attention")


def check_available(model: nn.Module, plan: Plan) -> None:
    """Raises PlanError (L210) for each thing that the plan declares and this wing cannot apply."""
    found = [
        *_islands(plan),
        *_float8(plan),
        *_tf32(plan),
        *_inside_attention(model, plan),
        *_normalization(model, plan),
    ]
    if found:
        raise PlanError(found)


def _islands(plan: Plan) -> list[Finding]:
    policy = plan.policy
    narrow = any(row.compute in ("bfloat16", "float16") for row in plan.rows)
    wider = [
        (name, wide)
        for name in ("softmax", "normalization", "reductions", "exponentials")
        if (wide := getattr(policy.islands, name)) == "float64" and policy.compute != "float64"
    ]
    return [
        finding(
            "L210",
            f"islands in {wide} inside compute {policy.compute} are not available in torch",
            place=Place(key=f"precision.islands.{name}"),
            expected="float32 or null" if narrow else "float32 (which is what the policy computes in)",
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
            f"compute {rows[0].compute} is not available in castiron's PyTorch wing: float8 products need "
            "scaled kernels, which autocast does not have",
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
            "tf32 is a switch of the whole process in torch: some layers cannot use it and others not",
            place=Place(module=full[0].path),
            expected="tf32 for every layer, or for none",
            received=f"tf32 for {len(tf32)} layers, float32 for {len(full)}",
            remedy="Declare compute float32 for the model, or drop the layer rule.",
        )
    ]


def _normalization(model: nn.Module, plan: Plan) -> list[Finding]:
    """Normalisation whose weights, statistics and arithmetic differ runs only as an island, all widened."""
    if plan.policy.islands.normalization is not None and ambient_dtype(plan) is not None:
        return []
    rows = {row.path: row for row in plan.rows}
    found = []
    for path, module in walk(model):
        row = rows.get(path)
        if row is None or row.family != "normalization" or not (row.parameters or row.buffer_formats):
            continue
        statistics = bool(row.parameters) and bool(row.buffer_formats) and row.param != row.buffers
        narrow_weights = bool(row.parameters) and is_wider(row.compute, row.param)
        if statistics or narrow_weights:
            other = f"buffers {row.buffers}" if statistics else f"compute {row.compute}"
            found.append(
                finding(
                    "L210",
                    f"torch's {type(module).__name__} does not take weights and "
                    f"{'statistics' if statistics else 'inputs'} of these two formats",
                    place=Place(module=path),
                    expected="one format for both, or normalization as an island",
                    received=f"param {row.param}, {other}",
                    remedy="Set islands.normalization to float32, or give the layer one format by a rule.",
                )
            )
    return found


def _inside_attention(model: nn.Module, plan: Plan) -> list[Finding]:
    """`nn.MultiheadAttention` multiplies by its output projection itself: that layer's forward never runs."""
    rows = {row.path: row for row in plan.rows}
    found = []
    for path, module in walk(model):
        if not isinstance(module, nn.MultiheadAttention):
            continue
        outer, inner = rows.get(path), rows.get(f"{path}.out_proj")
        if outer is None or inner is None:
            continue
        if (outer.param, outer.compute, outer.output) != (inner.param, inner.compute, inner.output):
            found.append(
                finding(
                    "L210",
                    "MultiheadAttention computes its output projection itself: "
                    "it cannot have formats of its own",
                    place=Place(module=inner.path),
                    expected=f"param {outer.param}, compute {outer.compute}, output {outer.output}, as the "
                    "attention around it",
                    received=f"param {inner.param}, compute {inner.compute}, output {inner.output}",
                    remedy=f"Give the rule to '{path}' instead.",
                )
            )
    return found
