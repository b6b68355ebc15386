"""F341: a sum over one axis that is divided by the length of another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from castiron.diagnostics import Finding
from castiron.keras.audit.context import Context
from castiron.keras.audit.kernels import MOVES
from castiron.keras.audit.records import Op, consumers
from castiron.training.shapes import reduced_axis, wrong_length


def check(context: Context) -> Iterator[Finding]:
    for op in context.trace.of("forward", "loss"):
        if op.name != "Sum" or not op.results or not op.floats:
            continue
        before = op.floats[0].shape
        summed = reduced_axis(before, op.results[0].shape)
        if summed is None:
            continue
        for use in consumers(op.results[0], MOVES):
            number = None if use.phase == "backward" else _divisor(use)
            if number is None:
                continue
            found = wrong_length(before, summed, number, context.place(use))
            if found is not None and not _is_summed(use):
                yield found


def _divisor(use: Op) -> float | None:
    """The number that an operation divides by."""
    if use.name not in ("RealDiv", "Div", "DivNoNan") or len(use.node.inputs) < 2:
        return None
    return _number(use.node.inputs[1])


def _number(tensor: Any) -> float | None:
    """What a scalar of a graph is, also where it is taken from a shape that is known."""
    value = tf.get_static_value(tensor)
    if value is not None:
        return float(np.ravel(value)[0]) if np.size(value) == 1 else None
    made = tensor.op
    if made.type == "Cast":
        return _number(made.inputs[0])
    if made.type != "StridedSlice":
        return None
    whole, begin = tf.get_static_value(made.inputs[0]), tf.get_static_value(made.inputs[1])
    known = whole is not None and begin is not None and np.ndim(whole) == 1 and np.size(begin) == 1
    return float(whole[int(np.ravel(begin)[0])]) if known else None


def _is_summed(use: Op) -> bool:
    """Whether the quotient is summed as well: then the other axis may be the one that is meant."""
    later = [op for r in use.results for op in consumers(r, MOVES)]
    return any(op.name == "Sum" and op.phase != "backward" for op in later)
