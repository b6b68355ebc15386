"""F315: integers in a float format that cannot hold them exactly."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from castiron.diagnostics import Finding, finding
from castiron.formats import number_format
from castiron.torch.audit.context import Context
from castiron.torch.audit.kernels import MOVES
from castiron.torch.audit.records import Op, Value
from castiron.torch.dtypes import NARROW, dtype_name

_SMALL = (torch.bool, torch.uint8, torch.int8)
"""Flags and bytes: what is usually a mask."""


def check(context: Context) -> Iterator[Finding]:
    for op in context.trace.of("forward", "loss"):
        if op.base == "arange" and op.results and op.results[0].is_float:
            largest = max((abs(s) for s in op.scalars), default=float(op.results[0].shape[0])) - 1
            yield from _judge(context, op, op.results[0].dtype, largest, "arange")
        elif op.base == "to_copy" and op.operands and op.results and op.results[0].is_float:
            value = op.operands[0]
            if value.is_float or value.dtype in _SMALL:
                continue
            yield from _judge(context, op, op.results[0].dtype, _largest(value), str(value.dtype)[6:])


def _judge(
    context: Context, op: Op, dtype: torch.dtype, largest: float | None, what: str
) -> Iterator[Finding]:
    exact = number_format(dtype_name(dtype)).max_exact_int
    if largest is not None and largest <= exact:
        return
    if largest is None and dtype not in NARROW:
        return  # 16,777,216 is enough for counts
    yield finding(
        "F315",
        f"{what} integers are put into {dtype_name(dtype)}"
        + (f", and go up to {largest:,.0f}" if largest is not None else ""),
        place=context.place(op),
        expected=f"integers up to {exact:,}, or an integer format",
        received=dtype_name(dtype) if largest is None else f"{largest:,.0f} in {dtype_name(dtype)}",
        severity="error" if largest is not None else "warning",
    )


def _largest(value: Value) -> float | None:
    """Largest magnitude, where it can be known without numbers."""
    if value.origin is not None:
        return value.origin.maximum
    op = value.maker
    if op is None:
        return None
    if op.base == "arange":
        return max((abs(s) for s in op.scalars), default=float(value.shape[0])) - 1
    if op.base in MOVES and op.operands:
        return _largest(op.operands[0])
    if op.base in ("eq", "ne", "lt", "gt", "le", "ge", "logical_not", "logical_and", "logical_or", "one_hot"):
        return 1.0
    if op.base in ("argmax", "argmin", "sum", "cumsum", "count_nonzero") and op.operands:
        # a count or a place: at most as many as there are elements
        flags = op.operands[0].dtype in _SMALL or op.base in ("argmax", "argmin", "count_nonzero")
        return float(_numel(op.operands[0].shape)) if flags else None
    return None


def _numel(shape: tuple[int, ...]) -> int:
    n = 1
    for extent in shape:
        n *= extent
    return n
