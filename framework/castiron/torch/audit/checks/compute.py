"""F303, F305, F306, F324: products in another format than planned, and operands that a kernel refuses."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from castiron.diagnostics import Finding, finding
from castiron.torch.audit import kernels
from castiron.torch.audit.context import Context
from castiron.torch.audit.kernels import BACKWARD_PRODUCTS, PRODUCTS, refused
from castiron.torch.audit.records import Op
from castiron.torch.dtypes import NARROW, dtype_name, torch_dtype


def check(context: Context) -> Iterator[Finding]:
    yield from _missing(context)
    for op in context.trace.of("forward", "loss", "backward"):
        if op.phase != "backward":
            reason = refused(op.base, [v.dtype for v in op.operands], [v.shape for v in op.operands])
            if reason is not None:
                yield _refused(context, op, reason)
                continue
            if op.base in PRODUCTS and op.floats:
                yield from _product(context, op)
        elif op.base in BACKWARD_PRODUCTS and op.forward is not None and op.floats:
            yield from _backward(context, op)


def _missing(context: Context) -> Iterator[Finding]:
    """Recurrent layers in a format that this device has no kernel for."""
    said: set[str | None] = set()
    for op in context.trace.of("forward"):
        if op.call is None or op.call.name != "lstm" or op.base not in PRODUCTS or op.module in said:
            continue
        dtype = op.floats[0].dtype
        if dtype not in NARROW:
            continue
        said.add(op.module)
        reason = kernels.no_lstm(dtype, context.device)
        if reason is not None:
            yield finding(
                "F324",
                f"lstm has no kernel for {dtype_name(dtype)} here: {reason}",
                place=context.place(op),
                expected="a format that the device computes in",
                received=dtype_name(dtype),
            )


def _refused(context: Context, op: Op, reason: str) -> Finding:
    planned = _planned(context, op)
    odd = next((v for v in op.operands if v.is_float and v.dtype not in planned), None)
    because = ""
    if odd is not None and (roots := context.roots(odd)):
        because = f"; {dtype_name(odd.dtype)} comes from {roots[0]}"
    return finding(
        "F306",
        f"{op.title} cannot take these operands: on real tensors it raises{because}",
        place=context.place(op),
        expected=reason,
        received=", ".join(str(v.format) for v in op.operands),
    )


def _product(context: Context, op: Op) -> Iterator[Finding]:
    received = op.floats[0].dtype
    planned = _planned(context, op)
    if not planned or received in planned or (received is torch.float64 and not context.allows_float64):
        return  # float64 is told where it begins
    expected = " or ".join(sorted(dtype_name(d) for d in planned))
    autocast = op.call.autocast if op.call is not None else None
    row = context.row(op.module)
    off = context.ambient is not None and autocast is None and planned & NARROW and received not in NARROW
    if off and (row is None or not row.ruled):
        yield finding(
            "F305",
            f"{op.title} computes in {dtype_name(received)}: autocast is switched off around it",
            place=context.place(op),
            expected=expected,
            received=dtype_name(received),
            flops=op.flops,
        )
        return
    if op.call is not None and autocast is context.ambient and _widened_within(context, op):
        yield finding(
            "F303",
            f"{op.call.name} computes a product in {dtype_name(received)} within: the kernel that torch "
            f"takes here "
            "widens its operands by itself",
            place=context.place(op),
            expected=expected,
            received=dtype_name(received),
            remedy="Nothing to do: it is more exact than declared, and slower. On CUDA a fused kernel is "
            "taken.",
            severity="info",
            flops=op.flops,
        )
        return
    why = ""
    if autocast is not None and autocast is received and autocast is not context.ambient:
        why = f": autocast({dtype_name(autocast)}) of the code's own is around it"
    elif roots := context.roots(op.floats[0]):
        why = f": its operand comes from {roots[0]}"
    yield finding(
        "F303",
        f"{op.title} computes in {dtype_name(received)}{why}",
        place=context.place(op),
        expected=expected,
        received=dtype_name(received),
        flops=op.flops,
    )


def _widened_within(context: Context, op: Op) -> bool:
    """Whether the operands were widened by the very function of torch's that computes with them."""
    if op.floats[0].dtype is not torch.float32:
        return False
    roots = [r for v in op.floats for r in context.roots(v)]
    return any(
        r.kind == "framework"
        and r.op is not None
        and r.op.call is op.call
        and r.op.operands[0].dtype in NARROW
        for r in roots
    )


def _backward(context: Context, op: Op) -> Iterator[Finding]:
    assert op.forward is not None
    if op.forward.base not in PRODUCTS or not op.forward.floats:
        return
    forward, received = op.forward.floats[0].dtype, op.floats[0].dtype
    if received is forward or (received is torch.float64 and not context.allows_float64):
        return  # float64 is told where it begins
    yield finding(
        "F303",
        f"the backward of {op.forward.title} computes in {dtype_name(received)}, its forward in "
        f"{dtype_name(forward)}",
        place=context.place(op),
        expected=dtype_name(forward),
        received=dtype_name(received),
        flops=op.flops,
    )


def _planned(context: Context, op: Op) -> frozenset[torch.dtype]:
    """Formats that a product may compute in there; empty where the plan does not say."""
    row = context.row(op.module)
    policy = context.policy
    compute = policy.compute if row is None else row.compute
    if compute.startswith("float8"):
        return frozenset()
    if row is not None and row.family in ("normalization", "softmax", "embedding") and not row.ruled:
        compute = policy.compute
    formats = {torch_dtype(compute)}
    if op.phase == "loss" or row is None:
        formats |= {torch_dtype(policy.loss), torch_dtype(policy.compute)}
    return frozenset(formats)
