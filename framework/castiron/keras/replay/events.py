"""What kind of event a bad result is, from the operation, its operands and its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from castiron.keras.replay.values import numbers
from castiron.training.incident import Event

DIVISIONS = frozenset({"RealDiv", "Div", "FloorDiv", "TruncateDiv"})
POLES = frozenset(
    {
        *DIVISIONS, "Log", "Log1p", "Sqrt", "Rsqrt", "Reciprocal", "Inv", "Pow", "Acos", "Asin", "Acosh",
        "Atanh", "Digamma", "Lgamma", "Xlogy", "Xlog1py", "Xdivy", "Erfinv", "Ndtri", "Tan", "Mod",
        "FloorMod", "Atan2",
    }
)  # fmt: skip
"""Operations with points where no finite value, or no finite slope, exists."""
_POLES_AT_ONE = frozenset({"Acos", "Acosh", "Asin", "Atanh", "Erfinv", "Ndtri"})
_PRODUCTS = frozenset(
    {
        "Mul", "MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum", "Conv1D", "Conv2D",
        "Conv3D", "Prod", "_FusedMatMul", "DepthwiseConv2dNative",
    }
)  # fmt: skip
_MEANS = frozenset(
    {
        "Mean", "EuclideanNorm", "Softmax", "LogSoftmax", "SparseSoftmaxCrossEntropyWithLogits",
        "SoftmaxCrossEntropyWithLogits", "FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3",
    }
)  # fmt: skip
"""Operations that divide by a count, or by a sum."""


def forward_event(op: str, operands: Sequence[Any], results: Sequence[Any]) -> Event:
    """Event of an operation whose results are bad though its operands are finite, or masks of infinity.

    Args:
        operands: its tensors, in order.
    """
    nan = any(_any(r, np.isnan) for r in results)
    infinite = any(_any(o, np.isinf) for o in operands)
    if op in DIVISIONS:
        if nan:
            return "zero-over-zero"
        return "domain" if len(operands) > 1 and _any(operands[1], _is_zero) else "overflow"
    if op in POLES:
        if nan or op != "Pow":
            return "domain"
        return "domain" if _any(operands[0], _is_zero) else "overflow"
    if nan and infinite and op in _PRODUCTS:
        return "zero-times-inf"
    if nan and (infinite or op in _MEANS):
        return "zero-over-zero"  # infinity less infinity, infinity over infinity, a mean of nothing
    if not nan:
        return "overflow"
    return "zero-over-zero" if any(_is_empty(o) for o in operands) else "overflow"


def backward_event(op: str, incoming: Sequence[Any], outgoing: Sequence[Any], saved: Sequence[Any]) -> Event:
    """Event of an operation whose gradient is bad though it got a good one.

    Args:
        op: the forward operation.
        incoming: gradients it got.
        outgoing: gradients it gave.
        saved: operands and results of the forward operation, as far as they were kept.
    """
    nan = any(_any(g, np.isnan) for g in outgoing)
    if not nan:
        at_zero = any(_any(t, _is_zero) for t in saved)
        at_pole = at_zero or op in _POLES_AT_ONE or not saved
        return "domain" if op in POLES and at_pole else "overflow"
    if op in _PRODUCTS or op == "Pow":
        return "zero-times-inf"
    if any(_any(t, np.isinf) for t in saved):
        return "zero-times-inf"
    if op in POLES or _zero_where_nan(incoming, outgoing):
        return "zero-over-zero"
    return "overflow"


def _is_zero(values: Any) -> Any:
    return values == 0


def _is_empty(tensor: Any) -> bool:
    return 0 in tuple(tensor.shape)


def _any(tensor: Any, test: Callable[[Any], Any]) -> bool:
    values = numbers(tensor)
    return values is not None and bool(test(values).any())


def _zero_where_nan(incoming: Sequence[Any], outgoing: Sequence[Any]) -> bool:
    for came in map(numbers, incoming):
        for went in map(numbers, outgoing):
            if came is None or went is None or came.shape != went.shape:
                continue
            if bool(((came == 0) & np.isnan(went)).any()):
                return True
    return False
