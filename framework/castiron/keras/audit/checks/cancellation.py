"""F360: a variance as the difference of two means, in which digits cancel."""

from __future__ import annotations

from collections.abc import Iterator

import tensorflow as tf

from castiron.diagnostics import Finding, finding
from castiron.keras.audit.context import Context
from castiron.keras.audit.records import Op, Value

_SAME_NUMBERS = frozenset(
    {"BroadcastTo", "Cast", "EnsureShape", "ExpandDims", "Identity", "Reshape", "Squeeze", "StopGradient"}
)
_MEANS = frozenset({"Mean", "Sum"})


def check(context: Context) -> Iterator[Finding]:
    for op in context.trace.of("forward", "loss"):
        if op.name == "Sub" and op.call.by_user and (x := _spread_of(op)) is not None and x.is_float:
            yield finding(
                "F360",
                "a variance is the mean of squares less the square of the mean",
                place=context.place(op),
                expected="the mean of squared deviations (keras.ops.var, tf.math.reduce_variance)",
                received=f"a difference of two {op.results[0].dtype} numbers that are nearly equal where the "
                "mean is large beside the spread",
            )


def _spread_of(op: Op) -> Value | None:
    """The x of `mean(x * x) - mean(x) ** 2`."""
    first, second = op.operands
    squares, root = _mean_of(first), _square_of(second)
    if squares is None or root is None:
        return None
    x, again = _square_of(squares), _mean_of(root)
    return x if x is not None and x is again else None


def _mean_of(value: Value) -> Value | None:
    """What a mean, or a sum over a number, was taken of."""
    op = _plain(value).maker
    if op is not None and op.name in ("RealDiv", "DivNoNan"):
        op = _plain(op.operands[0]).maker
    return _plain(op.operands[0]) if op is not None and op.name in _MEANS else None


def _square_of(value: Value) -> Value | None:
    """What was squared."""
    op = _plain(value).maker
    if op is None:
        return None
    if op.name == "Square":
        return _plain(op.operands[0])
    if op.name == "Pow" and _is_two(op.operands[1]):
        return _plain(op.operands[0])
    if op.name == "Mul" and _plain(op.operands[0]) is _plain(op.operands[1]):
        return _plain(op.operands[0])
    return None


def _is_two(value: Value) -> bool:
    op = _plain(value).maker
    constant = None if op is None or op.name != "Const" else tf.get_static_value(op.node.outputs[0])
    return constant is not None and constant.shape == () and bool(constant == 2)


def _plain(value: Value) -> Value:
    """The value that this one has the numbers of."""
    while value.maker is not None and value.maker.name in _SAME_NUMBERS and value.maker.operands:
        value = value.maker.operands[0]
    return value
