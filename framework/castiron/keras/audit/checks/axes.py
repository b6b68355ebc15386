"""F341: a sum over one axis that is divided by the length of another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from castiron.diagnostics import Finding, finding
from castiron.keras.audit.context import Context
from castiron.keras.audit.kernels import MOVES
from castiron.keras.audit.records import Op, consumers
from castiron.training.shapes import reduced_axis


def check(context: Context) -> Iterator[Finding]:
    for op in context.trace.of("forward", "loss"):
        if op.name != "Sum" or not op.results or not op.floats:
            continue
        before = op.floats[0].shape
        summed = reduced_axis(before, op.results[0].shape)
        if summed is None:
            continue
        for use in consumers(op.results[0], MOVES):
            number = _divisor(use)
            others = [n for k, n in enumerate(before) if k != summed]
            if number is None or number == before[summed] or number not in others or number < 2:
                continue
            if use.phase == "backward" or _is_summed(use):
                continue
            yield finding(
                "F341",
                f"a sum over {before[summed]} numbers (axis {summed} of {list(before)}) is divided by "
                f"{number:g}, the length of another axis",
                place=context.place(use),
                expected=f"a division by {before[summed]}",
                received=f"{number:g}",
            )


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
