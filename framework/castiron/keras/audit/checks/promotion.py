"""F301, F302: operands of several formats, and float64 that nobody declared."""

from __future__ import annotations

from collections.abc import Iterator

from castiron.diagnostics import Finding, Place, finding
from castiron.keras.audit.context import Context, Root
from castiron.keras.audit.kernels import FREE, HANDS_ON
from castiron.keras.audit.records import Op, Value, consumers
from castiron.keras.dtypes import NARROW

_EXCUSED = frozenset(("batch", "framework", "cast", "promotion"))
"""What makes an operand wide without being a mistake here: the policy's doing, or reported where it is."""


def check(context: Context) -> Iterator[Finding]:
    told: set[int] = set()
    for op in context.trace.of("forward", "loss"):
        if context.cast(op) == "promotion":
            yield from _promotion(context, op, told)
    if not context.allows_float64:
        yield from _float64(context, told)


def _promotion(context: Context, cast: Op, told: set[int]) -> Iterator[Finding]:
    """A cast that a function of keras.ops puts before an operation, to bring its operands together."""
    low, wide = cast.operands[0], cast.results[0]
    if low.shape == () and low.maker is not None and low.maker.name == "Const":
        return  # a number in the code
    users = [op for op in consumers(wide, HANDS_ON - {"ConcatV2", "Pack", "SelectV2", "Select"})
             if op.name != "Cast"]  # fmt: skip
    others = [v for op in users for v in op.operands if v.dtype == wide.dtype and v is not wide]
    roots = [
        r
        for v in others
        for r in context.roots(v)
        if not (r.op is not None and context.cast(r.op) == "promotion")
    ]
    if wide.dtype == "float64" and not context.allows_float64:
        severity = "error"
    elif low.dtype in NARROW:
        severity = "warning"
    else:
        return
    if severity == "warning" and (
        not roots or any(r.kind in _EXCUSED for r in roots) or all(context.is_island(u) for u in users)
    ):
        return
    root = _worst(roots)
    told.update(id(r.value) for r in roots)
    told.add(id(wide))
    yield finding(
        "F301",
        f"{cast.call.name} meets {low.dtype} with {wide.dtype} and computes in {wide.dtype}"
        + (f", because of {root}" if root is not None else ""),
        place=context.place(cast),
        expected=f"operands in {low.dtype}",
        received=", ".join([str(low.format), *(str(v.format) for v in others[:1])]),
        remedy="Make the operand in the format of the other: keras.ops.cast(operand, x.dtype).",
        severity=severity,  # type: ignore[arg-type]
        made=root.where if root is not None else "",
    )


def _float64(context: Context, told: set[int]) -> Iterator[Finding]:
    """Each place where float64 begins, and is computed with."""
    said: set[int] = set()
    for op in context.trace.of("forward", "loss"):
        for value in (*op.operands, *op.results):
            if value.dtype != "float64":
                continue
            for root in context.roots(value):
                if id(root.value) in told or id(root.value) in said or root.kind == "promotion":
                    continue
                said.add(id(root.value))
                if _is_used(root.value) or root.kind == "batch":
                    yield from _begins(context, root)


def _begins(context: Context, root: Root) -> Iterator[Finding]:
    value = root.value
    remedy, severity = None, "error"
    if root.op is not None and value.origin is None:
        where = context.place(root.op)
        name = root.op.call.name or root.op.title
        what = f"{name} makes a float64 tensor"
        remedy = (
            "State the format where the tensor is made: dtype=x.dtype, or keras.ops.cast. (What is made "
            "without a dtype has keras.config.floatx().)"
        )
    else:
        user = next((c for c in consumers(value, HANDS_ON)), None)
        where = context.place(user) if user is not None else Place()
        what = f"{root} is float64"
        if root.kind == "batch" and value.origin is not None:
            where = Place(
                field=f"batch{value.origin.name}", module=where.module, file=where.file, line=where.line
            )
            if user is not None and user.name == "Cast" and not _is_used(value):
                if context.policy.casts.float64_source == "ignore":
                    return
                what += f", and Keras casts it to {user.results[0].dtype} without a word"
                severity = "error" if context.policy.casts.float64_source == "error" else "warning"
            remedy = "Convert the array before training: array.astype('float32')."
        elif root.kind == "outside":
            remedy = "Convert the array before it is used: array.astype('float32')."
    yield finding(
        "F302",
        what,
        place=where,
        expected="no float64: the policy declares none",
        received=str(value.format),
        remedy=remedy,
        severity=severity,  # type: ignore[arg-type]
    )


def _is_used(value: Value) -> bool:
    """Whether anything computes with it before it is cast to what was declared."""
    return any(op.name not in FREE for op in consumers(value, HANDS_ON | {"While", "StatelessWhile"})) or any(
        op.name in ("While", "StatelessWhile") for op in value.consumers
    )


def _worst(roots: list[Root]) -> Root | None:
    order = ("constant", "outside", "buffer", "parameter", "cast", "batch")
    ranked = sorted(roots, key=lambda r: order.index(r.kind) if r.kind in order else len(order))
    return ranked[0] if ranked else None
