"""What kind of event a bad result is, from the operation, its operands and its results."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from castiron.torch.replay.values import is_finite, numbers
from castiron.training.incident import Event

_POLES = frozenset((
    "log", "log2", "log10", "log1p", "logit", "sqrt", "rsqrt", "reciprocal", "div", "rdiv", "pow",
    "float_power", "acos", "asin", "acosh", "atanh", "digamma", "lgamma", "mvlgamma", "xlogy",
    "xlog1py", "erfinv", "tan", "remainder", "fmod", "norm", "linalg_vector_norm", "cdist", "atan2",
    "floor_divide",
))  # fmt: skip
"""Operations with points where no finite value, or no finite slope, exists."""

_PRODUCTS = frozenset((
    "mul", "matmul", "mm", "bmm", "addmm", "baddbmm", "addmv", "mv", "dot", "einsum", "linear",
    "conv1d", "conv2d", "conv3d", "convolution", "prod", "addcmul", "scaled_dot_product_attention",
    "outer", "bilinear",
))  # fmt: skip
_MEANS = frozenset((
    "mean", "nanmean", "var", "std", "var_mean", "std_mean", "nll_loss", "nll_loss2d",
    "cross_entropy_loss", "softmax", "log_softmax", "softmin", "cross_entropy",
))  # fmt: skip
"""Operations that divide by a count, or by a sum."""


@torch.no_grad()
def forward_event(
    op: str,
    operands: Sequence[Tensor],
    scalars: Sequence[float],
    results: Sequence[Tensor],
    in_float64: Callable[[], Any] | None = None,
) -> Event:
    """Event of an operation whose results are bad though its operands are finite, or masks of infinity.

    Args:
        op: its name; of an operation in place without the underscore too.
        operands: its tensors, in order.
        scalars: plain numbers among its arguments, in order.
        results: its results.
        in_float64: runs it again with its operands in float64; None where it cannot be.
    """
    base = op.rstrip("_")
    if any(math.isnan(s) for s in scalars) or not operands:
        return "inherited"  # a NaN that is written in the code
    nan = any(_any(r, torch.isnan) for r in results)
    infinite = any(_any(o, torch.isinf) for o in operands)
    if base in ("div", "rdiv") and len(operands) + len(scalars) >= 2:
        if nan:
            return "zero-over-zero"
        return "domain" if _has_zero_divisor(base, operands, scalars) else "overflow"
    if base in _POLES:
        if nan:
            return "domain"
        at_pole = any(_any(o, _is_zero) for o in operands) or base not in ("pow", "float_power")
        return "domain" if at_pole else "overflow"
    if nan and infinite and base in _PRODUCTS:
        return "zero-times-inf"
    if nan and (infinite or (base in _MEANS and not _finite_in(in_float64))):
        return "zero-over-zero"  # infinity less infinity, infinity over infinity, a mean of nothing
    if not nan:
        return "overflow"
    if _finite_in(in_float64):
        return "overflow"
    return "zero-over-zero" if any(o.numel() == 0 for o in operands) else "domain"


@torch.no_grad()
def backward_event(
    node: str, incoming: Sequence[Tensor], outgoing: Sequence[Tensor], saved: Mapping[str, Tensor]
) -> Event:
    """Event of a node of autograd that gives a bad gradient though it got good ones.

    Args:
        node: its name, `SqrtBackward0`.
        incoming: gradients it got.
        outgoing: gradients it gave.
        saved: tensors that its forward operation saved for it, by name.
    """
    base = _forward_of(node)
    nan = any(_any(g, torch.isnan) for g in outgoing)
    pole = base in _POLES
    if node.endswith("Backward"):  # a function of the user's own, whose formula nobody knows
        largest = max((float(t.abs().max()) for t in (*incoming, *saved.values()) if t.numel()), default=0.0)
        if not nan:
            return (
                "overflow" if largest > 1e18 or largest > torch.finfo(outgoing[0].dtype).max / 4 else "domain"
            )
    if not nan:
        at_zero = any(_any(t, _is_zero) for t in saved.values())
        return "domain" if pole and (at_zero or not saved) else "overflow"
    if base in ("pow", "float_power", "mul", "mm", "bmm", "addmm", "linear", "convolution", "prod"):
        return "zero-times-inf"
    if any(_any(t, torch.isinf) or _any(t, torch.isnan) for t in saved.values()):
        return "zero-times-inf"
    if pole or _zero_where_nan(incoming, outgoing):
        return "zero-over-zero"
    return "overflow"


def _forward_of(node: str) -> str:
    """`SqrtBackward0` → `sqrt`, `LinalgVectorNormBackward0` → `linalg_vector_norm`."""
    name = node.partition("Backward")[0]
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


def _has_zero_divisor(base: str, operands: Sequence[Tensor], scalars: Sequence[float]) -> bool:
    if base == "rdiv" or len(operands) == 1:
        return any(_any(o, _is_zero) for o in operands) if base == "rdiv" else 0.0 in scalars
    return _any(operands[1], _is_zero)


def _finite_in(in_float64: Callable[[], Any] | None) -> bool:
    """Whether the same operation is finite in float64: it overflowed its format."""
    if in_float64 is None:
        return False
    try:
        found = in_float64()
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return False  # no such kernel: nothing is known
    tensors = [t for t in (found if isinstance(found, (tuple, list)) else [found]) if isinstance(t, Tensor)]
    return bool(tensors) and all(is_finite(t) for t in tensors)


def _is_zero(tensor: Tensor) -> Tensor:
    return tensor == 0


def _any(tensor: Tensor, test: Callable[[Tensor], Tensor]) -> bool:
    if test is _is_zero and not tensor.is_floating_point():
        return bool((tensor == 0).any())
    values = numbers(tensor)
    return values is not None and bool(test(values).any())


def _zero_where_nan(incoming: Sequence[Tensor], outgoing: Sequence[Tensor]) -> bool:
    for came in incoming:
        for went in outgoing:
            if came.shape == went.shape and bool(((came == 0) & went.isnan()).any()):
                return True
    return False
