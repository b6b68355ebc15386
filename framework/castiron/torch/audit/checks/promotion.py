"""F301, F302: operands of several formats, and float64 that nobody declared."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from castiron.diagnostics import Finding, Place, finding
from castiron.torch.audit.context import Context, Root, promoted
from castiron.torch.audit.kernels import MOVES, promotes
from castiron.torch.audit.records import Op, Value, consumers
from castiron.torch.dtypes import NARROW, dtype_name

_EXCUSED = frozenset(("batch", "framework", "cast", "promotion"))
"""What makes an operand wide without being a mistake here: the policy's doing, or reported where it is."""


def check(context: Context) -> Iterator[Finding]:
    told: set[int] = set()
    for op in context.trace.of("forward", "loss"):
        if promotes(op.func, op.base):
            yield from _promotion(context, op, told)
    if not context.allows_float64:
        yield from _float64(context, told)


def _promotion(context: Context, op: Op, told: set[int]) -> Iterator[Finding]:
    met = promoted(op)
    if met is None:
        if (f := _from_integers(context, op, told)) is not None:
            yield f
        return
    low, high = met
    if op.in_place and op.operands and op.operands[0].dtype is high:
        return  # a narrower term is added to a wider sum: exact
    if high is torch.float64 and not context.allows_float64:
        guilty, severity = high, "error"
    elif torch.float64 in context.declared and high is torch.float64:
        guilty, severity = low, "warning"
    elif low in NARROW and high in (torch.float32, *NARROW):
        guilty, severity = high, "warning"
        if low is not high and high in NARROW:
            guilty = high
    else:
        return
    roots = [r for v in op.operands if v.dtype is guilty for r in context.roots(v)]
    if severity == "warning":
        if op.call is not None and not op.call.by_user and op.call.name != op.base:
            return  # within one of torch's own functions
        if not roots or any(r.kind in _EXCUSED for r in roots) or _harmless(context, op):
            return
    root = _worst(roots)
    if root is not None:
        told.update(id(r.value) for r in roots)
    wide = next(v for v in op.operands if v.dtype is guilty)
    yield finding(
        "F301",
        f"{op.title} meets {dtype_name(low)} with {dtype_name(high)} and computes in {dtype_name(high)}"
        + (f", because of {root}" if root is not None else ""),
        place=context.place(op),
        expected=f"operands in {dtype_name(low if guilty is high else high)}",
        received=", ".join(str(v.format) for v in op.operands if v.is_float),
        severity=severity,  # type: ignore[arg-type]
        operand=str(wide.format),
        made=root.where if root is not None else "",
    )


def _from_integers(context: Context, op: Op, told: set[int]) -> Finding | None:
    """Integers with axes and a float64 scalar: the result is float64."""
    if context.allows_float64 or not op.results or op.results[0].dtype is not torch.float64:
        return None
    floats = op.floats
    if not floats or any(v.shape for v in floats) or not any(v.shape for v in op.operands):
        return None
    roots = context.roots(floats[0])
    told.update(id(r.value) for r in roots)
    told.add(id(op.results[0]))
    return finding(
        "F301",
        f"{op.title} meets integers with a float64 scalar and computes in float64, because of {roots[0]}",
        place=context.place(op),
        expected="operands in float32",
        received=", ".join(str(v.format) for v in op.operands),
        severity="error",
    )


def _float64(context: Context, told: set[int]) -> Iterator[Finding]:
    """Each place where float64 begins, and is computed with."""
    said: set[int] = set()
    for op in context.trace.of("forward", "loss"):
        values = [v for v in (*op.operands, *op.results) if v.dtype is torch.float64]
        for value in values:
            for root in context.roots(value):
                if id(root.value) in told or id(root.value) in said or root.kind == "promotion":
                    continue
                said.add(id(root.value))
                if root.value.shape == () and not _spreads(root.value):
                    continue  # a scalar: it does not decide the format of what it meets
                if not _is_used(root.value):
                    continue
                yield _begins(context, root)


def _begins(context: Context, root: Root) -> Finding:
    value = root.value
    if root.op is not None and value.origin is None:
        where = context.place(root.op)
        what = f"{root.op.title} makes a float64 tensor"
    else:
        user = next(iter(value.consumers), None)
        where = context.place(user) if user is not None else Place()
        if root.kind == "batch" and value.origin is not None:
            where = Place(
                field=f"batch{value.origin.name}", module=where.module, file=where.file, line=where.line
            )
        what = f"{root} is float64"
    return finding(
        "F302",
        what,
        place=where,
        expected="no float64: the policy declares none",
        received=str(value.format),
    )


def _spreads(value: Value) -> bool:
    """Whether a scalar meets only scalars or integers, whose format it then decides."""
    return any(
        (r.dtype is torch.float64 and any(not v.is_float and v.shape for v in op.operands)) or
        (r.dtype is torch.float64 and len(op.operands) > 1 and not r.shape)
        for op in value.consumers for r in op.results
    )  # fmt: skip


def _is_used(value: Value) -> bool:
    """Whether anything computes with it before it is cast to what was declared."""
    return any(op.base != "to_copy" for op in consumers(value, tuple(MOVES)))


def _harmless(context: Context, op: Op) -> bool:
    """Whether all that uses the result keeps wide anyhow (scores plus a mask, before softmax)."""
    users = [u for r in op.results for u in consumers(r, tuple(MOVES)) if u.phase in ("forward", "loss")]
    return bool(users) and all(context.is_island(u) for u in users)


def _worst(roots: list[Root]) -> Root | None:
    order = ("constant", "outside", "attribute", "buffer", "parameter", "cast", "batch")
    ranked = sorted(roots, key=lambda r: order.index(r.kind) if r.kind in order else len(order))
    return ranked[0] if ranked else None
