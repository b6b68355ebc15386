"""What happened in one sentence, and what to do about it, in Keras's and TensorFlow's words."""

from __future__ import annotations

from collections.abc import Sequence

from castiron.training.event_words import against_overflow, floats_of, gave, overflows
from castiron.training.incident import Event, Phase, TensorStatistics

_LOG = (
    "Take the logarithm of something that cannot be 0: `tf.nn.log_softmax`, a loss with `from_logits=True`, "
    "or `tf.math.log(tf.maximum(x, eps))`."
)
_SQRT = (
    "The slope of sqrt at 0 is infinite: `tf.sqrt(x + eps)` or `tf.sqrt(tf.maximum(x, eps))`. A `tf.where` "
    "behind it does not help: 0 · inf."
)
_DIVISION = "Keep the divisor away from 0: `x / (y + eps)`, or `tf.math.divide_no_nan(x, y)`."
_SOFTMAX = (
    "A row of scores is masked whole. Leave one position open, mask with a large finite number, or take such "
    "rows out before."
)
_NOTHING = {
    "Softmax": "is taken over nothing but -inf",
    "LogSoftmax": "is taken over nothing but -inf",
    "Mean": "is taken over nothing",
}
_REMEDIES: tuple[tuple[tuple[str, ...], tuple[Event, ...], str], ...] = (
    (("Log", "Log1p", "Xlogy", "Xlog1py"), ("domain", "zero-over-zero"), _LOG),
    (("Sqrt", "Rsqrt", "EuclideanNorm"), ("domain", "zero-over-zero", "zero-times-inf"), _SQRT),
    (("Softmax", "LogSoftmax"), ("zero-over-zero",), _SOFTMAX),
    (
        ("Mean",),
        ("zero-over-zero",),
        "Nothing was left to take the mean of: the mask is empty. Skip such batches, or take "
        "`tf.math.divide_no_nan(sum, count)`.",
    ),
    (("RealDiv", "Div", "Reciprocal"), ("domain", "zero-over-zero"), _DIVISION),
    (
        ("Pow",),
        ("domain", "zero-times-inf", "zero-over-zero"),
        "A power has no finite value or slope there: keep the base above 0 (`tf.maximum(x, eps)`).",
    ),
    (("Acos", "Asin", "Atanh"), ("domain",), "Keep the argument within (-1, 1): `tf.clip_by_value`."),
    (
        ("Exp", "Expm1", "Sinh", "Cosh"),
        ("overflow",),
        "Subtract the largest value first (`tf.nn.softmax`, `tf.reduce_logsumexp` do), or clip the argument.",
    ),
)


def remedy(op: str, event: Event, module: str | None, dtype: str | None, scale: float, phase: Phase) -> str:
    """What to do, as specific as can be."""
    base = op.removesuffix("Grad") if phase == "backward" else op
    for ops, events, text in _REMEDIES:
        if event in events and base in ops:
            return text
    if event == "overflow":
        return against_overflow(module, dtype, scale, phase)
    if event == "zero-over-zero":
        return _DIVISION
    if event == "zero-times-inf":
        return (
            "Something infinite met a zero. Mask with `tf.where` instead of multiplying, and keep the "
            "infinite value from arising."
        )
    return "Keep the operands inside the domain of the operation: clip them before it."


def sentence(
    op: str, event: Event, operands: Sequence[TensorStatistics], results: Sequence[TensorStatistics]
) -> str:
    """What an operation did."""
    given, floats = gave(results), floats_of(operands)
    if event == "overflow":
        return overflows(op, floats, results)
    if event == "zero-over-zero":
        return f"{op} {_NOTHING.get(op, 'divides zero by zero, or infinity by infinity')}: {given}"
    if event == "zero-times-inf":
        return f"{op} multiplies zero by infinity: {given}"
    if event == "domain":
        if op.endswith("Grad"):
            return f"{op} has no finite slope there: {given}"
        least = min((o.min for o in floats if o.min is not None), default=None)
        if least == 0:
            return f"{op} meets 0, where it has no finite value: {given}"
        at = f" (operands from {least:g})" if least is not None else ""
        return f"{op} leaves its domain{at}: {given}"
    return f"{op} gives {given}"
