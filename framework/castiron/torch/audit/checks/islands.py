"""F308, F316, F319, F320, F321: what 16 bits are too few for."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from castiron.diagnostics import Finding, finding
from castiron.torch.audit.context import Context
from castiron.torch.audit.kernels import ISLANDS
from castiron.torch.audit.records import Op
from castiron.torch.dtypes import NARROW, dtype_name
from castiron.training.source_lines import place

_CHAIN = 8
"""So many additions to one 16-bit scalar are a running sum."""
_SMALL_SUM = 32
"""A sum of so few terms is exact enough in 16 bits."""
_ARITHMETIC = frozenset(("add", "sub", "mul", "div", "masked_fill", "clamp", "clamp_min", "clamp_max", "rsub",
                         "where", "fill"))  # fmt: skip


def check(context: Context) -> Iterator[Finding]:
    for op in context.trace.of("forward", "loss"):
        yield from _island(context, op)
        yield from _scalar(context, op)
    yield from _running_sums(context)
    yield from _unsafe_losses(context)


def _island(context: Context, op: Op) -> Iterator[Finding]:
    kind = ISLANDS.get(op.base)
    if kind is None or not context.is_island(op):
        return
    narrow = next((v.dtype for v in op.floats if v.dtype in NARROW), None)
    if op.dtype_argument in NARROW:
        narrow = op.dtype_argument
    elif narrow is not None and op.dtype_argument is not None and op.dtype_argument.is_floating_point:
        narrow = None  # it widens by itself: sum(dtype=float32)
    if narrow is None:
        return
    if op.base in ("layer_norm", "group_norm", "batch_norm") and any(
        v.dtype not in NARROW for v in op.floats[1:]
    ):
        return  # a 16-bit input with float32 weights: the kernel computes in float32
    row = context.row(op.module)
    if row is not None and row.ruled and row.compute == dtype_name(narrow):
        return  # a layer rule says so
    if kind == "reductions" and _terms(op) <= _SMALL_SUM:
        return
    wide = "float32" if kind == "loss" else getattr(context.policy.islands, kind)
    how = ""
    if op.in_place:
        how = " in place, which goes round the islands"
    elif op.dtype_argument in NARROW:
        how = f" because its dtype= says {dtype_name(op.dtype_argument)}"
    elif op.call is not None and op.call.autocast is None and context.ambient is not None:
        how = " because autocast is switched off around it"
    yield finding(
        "F308",
        f"{op.title} computes in {dtype_name(narrow)}{how}",
        place=context.place(op),
        expected=f"{wide} ({'the loss' if kind == 'loss' else f'islands.{kind}'})",
        received=dtype_name(narrow),
    )


def _terms(op: Op) -> int:
    before = max((_numel(v.shape) for v in op.operands), default=0)
    after = max((_numel(v.shape) for v in op.results), default=1)
    return before if op.base.startswith("cum") else before // max(after, 1)


def _scalar(context: Context, op: Op) -> Iterator[Finding]:
    """Plain numbers that the tensor's format cannot hold."""
    narrow = next((v.dtype for v in op.floats if v.dtype in NARROW and v.shape), None)
    if (
        narrow is None
        or op.base not in _ARITHMETIC
        or any(v.shape and v.dtype not in NARROW for v in op.floats)
    ):
        return
    limits = torch.finfo(narrow)
    for number in op.scalars:
        if number != number or abs(number) == float("inf"):
            continue
        if abs(number) > limits.max:
            yield finding(
                "F320",
                f"{number:g} does not fit into the {dtype_name(narrow)} tensor that {op.title} takes",
                place=context.place(op),
                expected=f"magnitudes up to {limits.max:g}",
                received=f"{number:g}",
            )
        elif number and abs(number) < limits.smallest_normal * limits.eps / 2:
            yield finding(
                "F321",
                f"{number:g} is zero in the {dtype_name(narrow)} tensor that {op.title} takes",
                place=context.place(op),
                expected=f"magnitudes from {limits.smallest_normal * limits.eps:g}",
                received=f"{number:g}",
            )


def _running_sums(context: Context) -> Iterator[Finding]:
    """Chains of additions to one 16-bit scalar or buffer."""
    length: dict[int, int] = {}
    for op in context.trace.of("forward", "loss"):
        if op.base != "add" or not op.results or op.results[0].dtype not in NARROW or op.results[0].shape:
            continue
        total = op.operands[0]
        if op.in_place and total.origin is not None and total.origin.kind in ("buffer", "attribute"):
            yield finding(
                "F316",
                f"a sum over steps is carried on in {total.origin}, a {dtype_name(total.dtype)} scalar",
                place=context.place(op),
                expected=context.policy.accumulate,
                received=dtype_name(total.dtype),
            )
            continue
        so_far = 1 + max((length.get(id(v), 0) for v in op.operands), default=0)
        length[id(op.results[0])] = so_far
        if so_far == _CHAIN:
            yield finding(
                "F316",
                f"a sum is carried on in a {dtype_name(op.results[0].dtype)} scalar, term by term",
                place=context.place(op),
                expected=context.policy.accumulate,
                received=dtype_name(op.results[0].dtype),
            )


def _unsafe_losses(context: Context) -> Iterator[Finding]:
    if context.ambient is None:
        return
    for call, module, phase in context.trace.calls:
        if call.name == "binary_cross_entropy" and call.autocast is not None:
            yield finding(
                "F319",
                "binary_cross_entropy takes probabilities under autocast",
                place=place(call.lines, module, call.name, phase),
                expected="binary_cross_entropy_with_logits on the outputs before the sigmoid",
                received=f"binary_cross_entropy under autocast({dtype_name(call.autocast)})",
            )


def _numel(shape: tuple[int, ...]) -> int:
    n = 1
    for extent in shape:
        n *= extent
    return n
