"""F360: a variance as the difference of two means, in which digits cancel."""

from __future__ import annotations

from collections.abc import Iterator

from castiron.diagnostics import Finding, finding
from castiron.torch.audit.context import Context
from castiron.torch.audit.kernels import CASTS
from castiron.torch.audit.records import Op, Value
from castiron.torch.dtypes import dtype_name

_SAME_NUMBERS = frozenset(
    {*CASTS, "view", "_unsafe_view", "unsqueeze", "squeeze", "expand", "detach", "clone", "alias", "t"}
)
_MEANS = frozenset({"mean", "sum"})


def check(context: Context) -> Iterator[Finding]:
    for op in context.trace.of("forward", "loss"):
        if op.base == "sub" and (x := _spread_of(op)) is not None and x.is_float:
            yield finding(
                "F360",
                "a variance is the mean of squares less the square of the mean",
                place=context.place(op),
                expected="the mean of squared deviations (x.var(), or (x - x.mean()).square().mean())",
                received=f"a difference of two {dtype_name(op.results[0].dtype)} numbers that are nearly "
                "equal where the mean is large beside the spread",
            )


def _spread_of(op: Op) -> Value | None:
    """The x of `mean(x * x) - mean(x) ** 2`."""
    if len(op.operands) != 2:
        return None
    first, second = op.operands
    squares = _mean_of(first)
    root = _square_of(second)
    if squares is None or root is None:
        return None
    x, again = _square_of(squares), _mean_of(root)
    return x if x is not None and x is again else None


def _mean_of(value: Value) -> Value | None:
    """What a mean, or a sum over a number, was taken of."""
    op = _maker(value)
    if op is not None and op.base == "div" and len(op.operands) == 1:
        op = _maker(op.operands[0])
    return _plain(op.operands[0]) if op is not None and op.base in _MEANS and op.operands else None


def _square_of(value: Value) -> Value | None:
    """What was squared."""
    op = _maker(value)
    if op is None or not op.operands:
        return None
    if op.base == "pow" and op.scalars[:1] == (2.0,):
        return _plain(op.operands[0])
    if op.base == "mul" and len({id(_plain(v)) for v in op.operands}) == 1 and not op.scalars:
        return _plain(op.operands[0])
    return None


def _maker(value: Value) -> Op | None:
    return _plain(value).maker


def _plain(value: Value) -> Value:
    """The value that this one has the numbers of."""
    while value.maker is not None and value.maker.name in _SAME_NUMBERS and value.maker.operands:
        value = value.maker.operands[0]
    return value
