"""F304, F309, F325: casts in the user's code, to and fro, and of the same weight again and again."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from castiron.diagnostics import Finding, finding
from castiron.torch.audit.context import Context, is_users_cast
from castiron.torch.audit.kernels import CASTS, MOVES, PRODUCTS
from castiron.torch.audit.records import Op, Value, consumers
from castiron.torch.dtypes import dtype_name, is_narrower, torch_dtype


def check(context: Context) -> Iterator[Finding]:
    casts = [op for op in context.trace.of("forward", "loss") if _is_cast(op)]
    there_and_back = {id(back): there for back in casts if (there := _source_cast(back)) is not None}
    for op in casts:
        there = there_and_back.get(id(op))
        if there is not None and is_users_cast(there):
            yield _ping_pong(context, there, op)
    # where the first cast is the plan's own (a layer's output), only the second is the user's doing
    ponged = {id(there) for there in there_and_back.values()} | {
        back for back, there in there_and_back.items() if is_users_cast(there)
    }
    for op in casts:
        if is_users_cast(op) and id(op) not in ponged and op.phase == "forward":
            yield from _users(context, op)
    yield from _repeated(context, casts)


def _is_cast(op: Op) -> bool:
    return (
        op.name in CASTS and len(op.operands) == 1 and bool(op.results)
        and op.operands[0].is_float and op.results[0].is_float
        and op.operands[0].dtype is not op.results[0].dtype
    )  # fmt: skip


def _users(context: Context, op: Op) -> Iterator[Finding]:
    """A cast that the user wrote, to a format that the plan does not have there."""
    source, target = op.operands[0].dtype, op.results[0].dtype
    if target is torch.float64 and not context.allows_float64:
        return  # F302
    row = context.row(op.module)
    policy = context.policy
    compute = torch_dtype(row.compute if row is not None else policy.compute)
    output = torch_dtype(row.output if row is not None else policy.output)
    if target in (compute, output):
        return
    narrower = is_narrower(target, compute)
    if not narrower and not _computed_with(context, op.results[0]):
        return
    assert op.call is not None
    if not narrower and _is_island_by_hand(context, op):
        yield finding(
            "F304",
            f".{op.call.name}() puts {dtype_name(source)} into {dtype_name(target)} for a norm or softmax "
            "written by hand, and casts back after it",
            place=context.place(op),
            expected=dtype_name(compute),
            received=dtype_name(target),
            remedy="Nothing to do: it is what the policy's islands do. torch's own layer (nn.RMSNorm, "
            "F.softmax) needs no casts.",
            severity="info",
        )
        return
    yield finding(
        "F304",
        f".{op.call.name}() puts {dtype_name(source)} into {dtype_name(target)}, "
        + (
            "which is narrower than anything declared there"
            if narrower
            else "and elementwise operations follow"
        ),
        place=context.place(op),
        expected=dtype_name(compute),
        received=dtype_name(target),
        severity="error" if narrower and target not in context.declared else "warning",
    )


def _computed_with(context: Context, value: Value) -> bool:
    """Whether anything computes with a widened tensor that would not be wide, or be cast back, anyhow."""
    for op in consumers(value, tuple(MOVES)):
        if op.phase != "forward" or context.is_island(op) or op.name in CASTS or op.base in PRODUCTS:
            continue
        return True
    return False


def _is_island_by_hand(context: Context, cast: Op) -> bool:
    """Whether a widened tensor meets operations that the policy keeps wide, and is cast back by the user."""
    waiting, seen = list(cast.results), {cast.index}
    island = back = False
    while waiting:
        for op in waiting.pop().consumers:
            if op.index in seen or op.phase != cast.phase or op.module != cast.module:
                continue
            seen.add(op.index)
            if _is_cast(op) and op.results[0].dtype is cast.operands[0].dtype:
                back = back or is_users_cast(op)
                continue
            island = island or context.is_island(op)
            waiting.extend(v for v in op.results if v.dtype is cast.results[0].dtype)
    return island and back


def _source_cast(op: Op) -> Op | None:
    """The cast whose result, not computed with, this one casts back."""
    value = op.operands[0]
    while value.maker is not None:
        maker = value.maker
        if _is_cast(maker):
            return maker if maker.operands[0].dtype is op.results[0].dtype else None
        if maker.base not in MOVES or not maker.operands:
            return None
        value = maker.operands[0]
    return None


def _ping_pong(context: Context, there: Op, back: Op) -> Finding:
    a, b = back.results[0].dtype, there.results[0].dtype
    size = _numel(there.results[0].shape)
    wasted = 2 * size * (a.itemsize + b.itemsize)
    rounds = is_narrower(b, a)
    return finding(
        "F309",
        f"a tensor goes from {dtype_name(a)} to {dtype_name(b)} and back, with nothing computed between"
        + (": every value is rounded" if rounds else ""),
        place=context.place(back if is_users_cast(back) else there),
        expected="no cast",
        received=f"two casts of {size:,} elements ({wasted:,} bytes moved)",
        bytes=wasted,
    )


def _repeated(context: Context, casts: list[Op]) -> Iterator[Finding]:
    """The same parameter, cast at the user's own lines more than once."""
    of: dict[int, list[Op]] = {}
    for op in casts:
        value = op.operands[0]
        while value.origin is None and value.maker is not None and value.maker.base in MOVES:
            value = value.maker.operands[0]
        if value.origin is not None and value.origin.kind == "parameter" and is_users_cast(op):
            of.setdefault(id(value), []).append(op)
    for ops in of.values():
        by_format: dict[torch.dtype, list[Op]] = {}
        for op in ops:
            by_format.setdefault(op.results[0].dtype, []).append(op)
        for dtype, same in by_format.items():
            if len(same) < 2:
                continue
            value = same[0].operands[0]
            size = _numel(value.shape) * (value.dtype.itemsize + dtype.itemsize)
            name = value.origin.name if value.origin is not None else "a parameter"
            yield finding(
                "F325",
                f"parameter '{name}' is cast to {dtype_name(dtype)} {len(same)} times in one forward pass",
                place=context.place(same[1]),
                expected="one cast",
                received=f"{len(same)} casts ({size * (len(same) - 1):,} bytes moved for nothing)",
                bytes=size * (len(same) - 1),
            )


def _numel(shape: tuple[int, ...]) -> int:
    n = 1
    for extent in shape:
        n *= extent
    return n
