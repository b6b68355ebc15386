"""F303, F305: products in another format than planned."""

from __future__ import annotations

from collections.abc import Iterator

from castiron.diagnostics import Finding, finding
from castiron.keras.audit.context import Context
from castiron.keras.audit.kernels import BACKWARD_PRODUCTS, PRODUCTS
from castiron.keras.audit.records import Op
from castiron.keras.dtypes import NARROW, tensorflow_name


def check(context: Context) -> Iterator[Finding]:
    for op in context.trace.of("forward", "loss", "backward"):
        if not op.floats:
            continue
        if op.phase == "backward":
            if op.name in BACKWARD_PRODUCTS and op.forward is not None and not op.call.by_user:
                yield from _backward(context, op)
        elif op.name in PRODUCTS:
            yield from _product(context, op)


def _product(context: Context, op: Op) -> Iterator[Finding]:
    received = op.floats[0].dtype
    planned = _planned(context, op)
    if not planned or received in planned or (received == "float64" and not context.allows_float64):
        return  # float64 is told where it begins
    expected = " or ".join(sorted(planned))
    layer = context.layers.get(op.module or "")
    row = context.row(op.module)
    ruled = row is not None and row.ruled
    if planned & NARROW and received not in NARROW and not getattr(layer, "autocast", True) and not ruled:
        yield finding(
            "F305",
            f"{op.title} computes in {received}: '{op.module}' is a layer with autocast=False, to which "
            "Keras gives inputs and variables as they come",
            place=context.place(op),
            expected=expected,
            received=received,
            remedy="Remove autocast=False, or declare the layer that is to stay wide: "
            f'layers: {{"{op.module}": {{compute: {received}}}}}.',
            flops=op.flops,
        )
        return
    roots = context.roots(op.floats[0])
    why = f": its operand comes from {roots[0]}" if roots else ""
    yield finding(
        "F303",
        f"{op.title} computes in {received}{why}",
        place=context.place(op),
        expected=expected,
        received=received,
        flops=op.flops,
    )


def _backward(context: Context, op: Op) -> Iterator[Finding]:
    assert op.forward is not None
    if op.forward.name not in PRODUCTS or not op.forward.floats:
        return
    forward, received = op.forward.floats[0].dtype, op.floats[0].dtype
    if received == forward or (received == "float64" and not context.allows_float64):
        return  # float64 is told where it begins
    yield finding(
        "F303",
        f"the backward of {op.forward.title} computes in {received}, its forward in {forward}",
        place=context.place(op),
        expected=forward,
        received=received,
        flops=op.flops,
    )


def _planned(context: Context, op: Op) -> frozenset[str]:
    """Formats that a product may compute in there; empty where the plan does not say."""
    row, policy = context.row(op.module), context.policy
    compute = policy.compute if row is None else row.compute
    if compute.startswith("float8"):
        return frozenset()
    if row is not None and row.family in ("normalization", "softmax", "embedding") and not row.ruled:
        compute = policy.compute
    formats = {tensorflow_name(compute)}
    if op.phase == "loss" or row is None:
        formats |= {tensorflow_name(policy.loss), tensorflow_name(policy.compute)}
    return frozenset(formats)
