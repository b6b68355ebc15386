"""What a policy may declare that torch cannot run; refused by name, never replaced."""

from __future__ import annotations

from torch import nn

from castiron.diagnostics import Finding, Place, PlanError, finding
from castiron.formats import is_wider
from castiron.policy import Plan
from castiron.torch.boundaries import ambient_dtype
from castiron.torch.modules import walk
from castiron.training.availability import float8_products, tf32_of_some, wide_islands


def check_available(model: nn.Module, plan: Plan) -> None:
    """Raises PlanError (L210) for each thing that the plan declares and this wing cannot apply."""
    narrow = any(row.compute in ("bfloat16", "float16") for row in plan.rows)
    island = "float32 or null" if narrow else "float32 (which is what the policy computes in)"
    kernels = "float8 products need scaled kernels, which autocast does not have"
    found = [
        *wide_islands(plan, "torch", expected=island),
        *float8_products(plan, "PyTorch", kernels),
        *tf32_of_some(plan, "torch"),
        *_inside_attention(model, plan),
        *_normalization(model, plan),
    ]
    if found:
        raise PlanError(found)


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
