"""F342: operations and optimizers that are known to be bad in a format on TensorFlow.

Each was seen on the installed version, and a test shows it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from castiron.diagnostics import Finding, Place, finding
from castiron.formats import number_format
from castiron.keras.audit.checks import switches
from castiron.keras.audit.checks.islands import along_the_last_axis
from castiron.keras.audit.context import Context
from castiron.keras.audit.records import Op
from castiron.keras.dtypes import NARROW

_ADDS_BY_INDEX = {
    "UnsortedSegmentSum": 0, "SegmentSum": 0, "SegmentSumV2": 0, "ScatterNd": 1, "TensorScatterAdd": 2,
    "ResourceScatterAdd": 2, "ResourceScatterNdAdd": 2, "ScatterAdd": 2, "ScatterNdAdd": 2,
}  # fmt: skip
"""Operation → its operand that is added up."""
_MANY = 16
"""A sum of numbers of both signs is off by a tenth from about so many times the terms at which a sum of ones
stops (noise with a mean of a tenth of its spread: 11 % at 5,000 rows in bfloat16, 67 % at 50,000)."""
_ADAMS = frozenset(("Adam", "AdamW", "Nadam", "Lamb"))


def check(context: Context) -> Iterator[Finding]:
    """Operations of a trace that are known to be bad."""
    for op in context.trace.of("forward", "loss", "backward"):
        bad = _by_index(op)
        if bad is None and not context.jit and switches.device() == "cpu":  # XLA sums these in float32
            bad = _of_a_bias(op) or _along_other_axes(op)
        if bad is None:
            continue
        what, dtype = bad
        whose = f"the backward of {op.forward.title}: " if op.forward is not None else ""
        yield finding(
            "F342",
            f"{whose}{op.title} {what}",
            place=context.place(op),
            expected="float32",
            received=dtype,
        )


def of_optimizer(optimizer: Any, state: str, *, stochastic: bool) -> Iterator[Finding]:
    """What is known to be bad of an optimizer that keeps its state in a format.

    Args:
        stochastic: whether what it keeps is rounded stochastically.
    """
    cls = type(optimizer).__name__
    if cls not in _ADAMS:
        return
    eps, beta2 = float(optimizer.epsilon), float(optimizer.beta_2)
    place = Place(op=cls, phase="optimizer")
    remedy = "Keep the state in float32 (state: float32), or change the setting."
    if state == "float16" and eps <= 2**-25:
        yield finding(
            "F342",
            f"{cls}: epsilon={eps:g} is zero in float16: where gradients are zero or small the step is 0/0",
            place=place,
            expected="epsilon of at least 6e-08, or a float32 state",
            received=f"{eps:g}",
            remedy=remedy,
        )
    elif state == "bfloat16" and 1 - beta2 < 2**-9 and not stochastic:
        yield finding(
            "F342",
            f"{cls}: with beta_2={beta2:g} the second moment in bfloat16 never falls: {1 - beta2:g} of it is "
            "less than half a spacing",
            place=place,
            expected="beta_2 up to 0.99, or a float32 state",
            received=f"{beta2:g}",
            remedy=remedy,
        )


def _by_index(op: Op) -> tuple[str, str] | None:
    """More terms for a place than the format counts, on the average."""
    operand = _ADDS_BY_INDEX.get(op.name)
    if operand is None or len(op.operands) <= operand:
        return None
    values = op.operands[operand]
    if values.dtype not in NARROW:
        return None
    into = op.results[0] if op.results and op.results[0].dtype == values.dtype else op.operands[0]
    if values.size <= into.size * number_format(values.dtype).max_exact_int:
        return None
    return (
        f"adds up in its own 16-bit format: ones stop counting at {_counts(values.dtype)}",
        values.dtype,
    )


def _of_a_bias(op: Op) -> tuple[str, str] | None:
    """The gradient of every bias that Keras adds (`keras.ops.add` is `tf.nn.bias_add`)."""
    if op.name != "BiasAddGrad" or not op.operands or op.operands[0].dtype != "bfloat16":
        return None
    rows = op.operands[0].size // max(op.results[0].size, 1)
    if rows <= _MANY * number_format("bfloat16").max_exact_int:
        return None
    return f"adds up {rows:,} rows in bfloat16: ones stop counting at 256", "bfloat16"


def _along_other_axes(op: Op) -> tuple[str, str] | None:
    """In backward; in forward it is told as a narrow sum (F308)."""
    if op.phase != "backward" or op.name not in ("Sum", "Mean") or not op.results:
        return None
    before, after = op.operands[0], op.results[0]
    if before.dtype != "float16" or len(before.shape) < 2 or along_the_last_axis(op):
        return None
    terms = before.size // max(after.size, 1)
    if terms <= _MANY * number_format("float16").max_exact_int:
        return None
    return f"adds up {terms:,} numbers in float16: ones stop counting at 2,048", "float16"


def _counts(dtype: str) -> str:
    return f"{number_format(dtype).max_exact_int:,}"
