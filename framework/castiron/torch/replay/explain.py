"""What happened in one sentence, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

from castiron.training.event_words import against_overflow, floats_of, gave, overflows
from castiron.training.incident import Event, Phase, TensorStatistics

_LOG = (
    "Take the logarithm of something above 0: `torch.log_softmax`, "
    "`binary_cross_entropy_with_logits` on logits, or `x.clamp(min=eps).log()`."
)
_SQRT = (
    "The slope of sqrt at 0 is infinite: `(x + eps).sqrt()`, `x.clamp(min=eps).sqrt()`, or "
    "`torch.linalg.vector_norm`, which has a gradient at 0. A `where` behind it does not help: 0 · inf."
)
_DIVISION = "Keep the divisor away from 0: `x / (y + eps)`, or `y.clamp(min=eps)`."
_SOFTMAX = (
    "A row of scores is masked whole. Leave one position open, use `scaled_dot_product_attention`, which "
    "gives zeros there, or take such rows out before."
)
_NOTHING = {
    "softmax": "is taken over nothing but -inf",
    "log_softmax": "is taken over nothing but -inf",
    "mean": "is taken over nothing",
    "nll_loss": "takes the mean over no target",
    "nll_loss2d": "takes the mean over no target",
    "var": "is taken over a single value",
    "std": "is taken over a single value",
}
_REMEDIES: tuple[tuple[tuple[str, ...], tuple[Event, ...], str], ...] = (
    (("log", "log2", "log10", "log1p", "logit", "xlogy"), ("domain", "zero-over-zero"), _LOG),
    (("sqrt", "rsqrt", "norm", "linalg_vector_norm", "cdist"),
     ("domain", "zero-over-zero", "zero-times-inf"), _SQRT),
    (("softmax", "log_softmax", "safe_softmax"), ("zero-over-zero",), _SOFTMAX),
    (
        ("nll_loss", "nll_loss2d", "cross_entropy", "mean", "nanmean"),
        ("zero-over-zero",),
        "Nothing was left to take the mean of: every target is ignored, or the mask is empty. Skip such "
        "batches, or take `sum() / count.clamp(min=1)`.",
    ),
    (("var", "std", "var_mean", "std_mean"), ("zero-over-zero",),
     "The variance of one value is 0/0: use `correction=0`, or more values."),
    (("div", "rdiv", "reciprocal", "true_divide"), ("domain", "zero-over-zero"), _DIVISION),
    (("pow", "float_power"), ("domain", "zero-times-inf", "zero-over-zero"),
     "A power has no finite value or slope there: keep the base above 0 (`x.clamp(min=eps)`)."),
    (("acos", "asin", "atanh"), ("domain",), "Keep the argument within (-1, 1): `clamp(-1 + eps, 1 - eps)`."),
    (("exp", "exp2", "expm1", "sinh", "cosh"), ("overflow",),
     "Subtract the largest value first (`softmax`, `logsumexp` do), or clamp the argument."),
)  # fmt: skip


def remedy(op: str, event: Event, module: str | None, dtype: str | None, scale: float, phase: Phase) -> str:
    """What to do, as specific as can be."""
    base = op.partition("Backward")[0].lower() if "Backward" in op else op.rstrip("_")
    for ops, events, text in _REMEDIES:
        if event in events and any(base == o or base == o.replace("_", "") for o in ops):
            return text
    if event == "inherited":
        return "Look where the constant comes from."
    if event == "overflow":
        return against_overflow(module, dtype, scale, phase)
    if event == "zero-over-zero":
        return _DIVISION
    if event == "zero-times-inf":
        return (
            "Something infinite met a zero. Mask with `masked_fill` or `where` instead of multiplying, and "
            "keep the infinite value from arising."
        )
    return "Keep the operands inside the domain of the operation: clamp them before it."


def sentence(
    op: str, event: Event, operands: Sequence[TensorStatistics], results: Sequence[TensorStatistics]
) -> str:
    """What an operation did."""
    given, floats = gave(results), floats_of(operands)
    if event == "overflow":
        return overflows(op, floats, results)
    if event == "zero-over-zero":
        infinite = any(o.posinf or o.neginf for o in operands)
        plainly = "meets infinity with infinity" if infinite else "divides zero by zero"
        return f"{op} {_NOTHING.get(op.rstrip('_'), plainly)}: {given}"
    if event == "zero-times-inf":
        return f"{op} multiplies zero by infinity: {given}"
    if event == "inherited":
        return f"{op} brings in a NaN that is written in the code: {given}"
    if event == "domain":
        return f"{op} {_outside(op, floats)}: {given}"
    return f"{op} gives {given}"


def _outside(op: str, operands: Sequence[TensorStatistics]) -> str:
    """How the operands leave the domain of an operation."""
    if "Backward" in op:
        return "has no finite slope there"
    if op.rstrip("_") in ("div", "rdiv", "reciprocal"):
        return "divides by 0"
    least = min((o.min for o in operands if o.min is not None), default=None)
    if least == 0:
        return "meets 0, where it has no finite value"
    if least is None:
        return "leaves its domain"
    largest = max(o.max for o in operands if o.max is not None)
    return f"leaves its domain (operands from {least:.8g} to {largest:.8g})"
