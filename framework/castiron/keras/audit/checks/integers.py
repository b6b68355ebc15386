"""F315, F333: integers in a float format that cannot hold them exactly, and series cut to whole numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from castiron.diagnostics import Finding, Place, finding
from castiron.formats import number_format
from castiron.keras.audit.context import Context
from castiron.keras.audit.kernels import HANDS_ON
from castiron.keras.audit.records import Op, Value, consumers
from castiron.keras.dtypes import NARROW

_SMALL = ("bool", "uint8", "int8")
"""Flags and bytes: what is usually a mask."""
_SERIES = ("lstm", "gru", "rnn", "conv")
_FLAGS = ("Equal", "NotEqual", "Less", "Greater", "LessEqual", "GreaterEqual", "LogicalNot", "OneHot",
          "LogicalAnd", "LogicalOr")  # fmt: skip


def check(context: Context) -> Iterator[Finding]:
    for op in context.trace.of("forward", "loss"):
        if op.name == "Range" and op.results and op.results[0].is_float:
            largest = _range(op)
            yield from _judge(context, op, op.results[0].dtype, largest, "range")
        elif op.name == "Cast" and op.operands and op.results and op.results[0].is_float:
            value = op.operands[0]
            if value.is_float or value.dtype in _SMALL:
                continue
            origin = _origin(value)
            yield from _judge(context, op, op.results[0].dtype, _largest(value), value.dtype)
            if origin is not None and origin.origin is not None and op.phase == "forward":
                yield from _series(context, op, origin)


def _judge(context: Context, op: Op, dtype: str, largest: float | None, what: str) -> Iterator[Finding]:
    exact = number_format(dtype).max_exact_int
    if largest is not None and largest <= exact:
        return
    if largest is None and (dtype not in NARROW or not op.call.by_user):
        return  # 16,777,216 is enough for counts, and Keras's own layers know what they count
    yield finding(
        "F315",
        f"{what} integers are put into {dtype}"
        + (f", and go up to {largest:,.0f}" if largest is not None else ""),
        place=context.place(op),
        expected=f"integers up to {exact:,}, or an integer format",
        received=dtype if largest is None else f"{largest:,.0f} in {dtype}",
        severity="error" if largest is not None else "warning",
    )


def _series(context: Context, op: Op, value: Value) -> Iterator[Finding]:
    """Whole numbers of the batch that a recurrent or convolutional layer takes for measurements."""
    if value.dtype not in ("int32", "int64") or len(value.shape) < 2 or value.origin is None:
        return
    for user in consumers(op.results[0], HANDS_ON):
        row = context.row(user.module)
        if row is None or row.family not in _SERIES:
            continue
        yield finding(
            "F333",
            f"{value.origin} is {value.dtype}, and '{user.module}' takes it for measurements",
            place=Place(field=f"batch{value.origin.name}", module=user.module, op=user.title),
            expected="floating-point numbers, or ids that go through an Embedding",
            received=str(value.format),
        )
        return


def _origin(value: Value) -> Value | None:
    """The leaf of the batch that a value is, past what only hands numbers on."""
    while value.origin is None:
        op = value.maker
        if op is None or op.name not in HANDS_ON or not op.operands:
            return None
        value = op.operands[0]
    return value if value.origin.kind == "batch" else None


def _range(op: Op) -> float | None:
    ends = [tf.get_static_value(t) for t in op.node.inputs]
    if any(e is None for e in ends):
        return None
    start, limit, delta = (float(np.asarray(e, np.float64)) for e in ends)
    return max(abs(start), abs(limit - delta))


def _largest(value: Value) -> float | None:
    """Largest magnitude, where it can be known without running the step."""
    if value.origin is not None:
        return value.origin.maximum
    op = value.maker
    if op is None:
        return None
    static = tf.get_static_value(op.node.outputs[op.results.index(value)])
    if static is not None:
        return float(np.abs(np.asarray(static, np.float64)).max()) if np.size(static) else 0.0
    if op.name == "Range":
        return _range(op)
    if op.name in _FLAGS:
        return 1.0
    if op.name in ("ArgMax", "ArgMin") and op.operands:
        return float(op.operands[0].size)
    if op.name in ("Sum", "Cumsum") and op.operands:
        # a count: at most as many as there are elements
        made = op.operands[0].maker
        flags = made is not None and made.name == "Cast" and made.operands[0].dtype == "bool"
        return float(op.operands[0].size) if flags else None
    if op.name in HANDS_ON and op.operands:
        return _largest(op.operands[0])
    return None
