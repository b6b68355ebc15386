"""F310, F311, F317, F318: the loss, what layers hand on, and the batch axis."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from castiron.diagnostics import Finding, Place, finding
from castiron.torch.audit.context import Context
from castiron.torch.audit.records import Op, Value
from castiron.torch.dtypes import dtype_name, is_narrower, torch_dtype
from castiron.training.source_lines import place

_LOSSES = frozenset((
    "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "poisson_nll_loss", "kl_div", "gaussian_nll_loss",
    "binary_cross_entropy_with_logits", "soft_margin_loss",
))  # fmt: skip
"""Losses that compare element by element."""


def check(context: Context) -> Iterator[Finding]:
    yield from _loss(context)
    yield from _layers(context)
    yield from _broadcast(context)
    yield from _batch_axis(context)


def _loss(context: Context) -> Iterator[Finding]:
    loss = context.trace.loss
    if loss is None or loss.dtype is torch_dtype(context.policy.loss):
        return
    at = context.place(loss.maker) if loss.maker is not None else Place(op="loss", phase="loss")
    because = ""
    if roots := context.roots(loss):
        because = f", because of {roots[0]}" if roots[0].value is not loss else ""
    yield finding(
        "F310",
        f"the loss is not in the declared format{because}",
        place=at,
        expected=context.policy.loss,
        received=dtype_name(loss.dtype),
    )


def _layers(context: Context) -> Iterator[Finding]:
    for left in context.trace.outputs:
        row = context.row(left.path)
        if row is None:
            continue
        declared = torch_dtype(row.output)
        for dtype, value in zip(left.dtypes, left.values, strict=True):
            if dtype is declared or (dtype is torch.float64 and not context.allows_float64):
                continue
            # containers hand on what is in them; a wider result of an island is theirs to keep
            # without autocast castiron puts no hook on a layer: what goes in decides
            free = not row.ruled and (row.family is None or context.ambient is None)
            if free and not is_narrower(dtype, declared):
                continue
            yield finding(
                "F311",
                f"{'the model' if not left.path else f'a {row.type}'} hands on {dtype_name(dtype)}",
                place=place(left.lines, left.path, None, "forward"),
                expected=row.output,
                received=str(value.format),
            )
            break


def _broadcast(context: Context) -> Iterator[Finding]:
    told: set[tuple[object, ...]] = set()
    for call, module, phase in context.trace.calls:
        if call.name in _LOSSES and len(call.shapes) > 1 and call.shapes[0] != call.shapes[1]:
            a, b = call.shapes[:2]
            told.add(call.lines[:1])
            if not a or not b:
                continue
            yield finding(
                "F317",
                f"{call.name} compares outputs of shape {list(a)} with targets of shape {list(b)}: one is "
                "broadcast against the other",
                place=place(call.lines, module, call.name, phase),
                expected="one shape",
                received=f"{list(a)} and {list(b)}",
            )
    for op in context.trace.of("forward", "loss"):
        if (pair := _grows(op)) is not None and op.lines[:1] not in told and _compares(context, op):
            told.add(op.lines[:1])
            yield finding(
                "F317",
                f"{op.title} broadcasts {list(pair[0])} against {list(pair[1])} to "
                f"{list(op.results[0].shape)}: every output is compared with every target",
                place=context.place(op),
                expected="one shape",
                received=f"{list(pair[0])} and {list(pair[1])}",
            )


def _grows(op: Op) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The shapes [B, 1] and [B] whose difference is [B, B]."""
    if op.base not in ("sub", "rsub", "mul", "div", "add") or len(op.operands) != 2:
        return None
    a, b = op.operands[0].shape, op.operands[1].shape
    for long, short in ((a, b), (b, a)):
        if len(long) == 2 and long[1] == 1 and len(short) == 1 and long[0] == short[0] > 1:
            return a, b
    return None


def _compares(context: Context, op: Op) -> bool:
    """Whether it is outputs against something else of the batch, in the loss."""
    size = context.trace.batch_size
    return op.phase == "loss" and op.results[0].shape[0] == size if size is not None else op.phase == "loss"


def _batch_axis(context: Context) -> Iterator[Finding]:
    size, results = context.trace.batch_size, context.trace.results
    if size is None or size < 2 or not results:
        return
    with_axes = [v for v in results if v.shape]
    if not with_axes or any(size in v.shape for v in with_axes):
        return
    # a multiple may be the batch folded with another axis (tokens, boxes); a fraction is samples merged
    worst = max(with_axes, key=lambda v: v.shape[0])
    if worst.shape[0] % size == 0 or any(_folds(v.shape, size) for v in with_axes):
        return
    if not _is_reshaped_away(worst, size):
        return  # a layer contracts that axis: it was no batch (time first, a single sample)
    yield finding(
        "F318",
        f"no axis of the output is as long as the batch ({size})",
        place=context.place(worst.maker) if worst.maker is not None else Place(module=""),
        expected=f"[{size}, …]",
        received=str(worst.format),
    )


def _is_reshaped_away(value: Value, size: int) -> bool:
    """Whether the operation after which no axis is `size` long only puts numbers into another order."""
    op = value.maker
    while op is not None:
        before = [v for v in op.operands if v.shape and (v.origin is None or v.origin.kind == "batch")]
        if any(v.shape[0] == size for v in before):
            return op.base in ("view", "reshape", "unsafe_view", "slice", "reshape_alias")
        op = next((v.maker for v in before if v.maker is not None and v.maker.index < op.index), None)
    return False


def _folds(shape: tuple[int, ...], size: int) -> bool:
    return any(extent % size == 0 and extent >= size for extent in shape)
