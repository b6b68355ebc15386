"""F304, F309, F325: casts in the user's code, to and fro, and of the same weight again and again."""

from __future__ import annotations

from collections.abc import Iterator

from castiron.diagnostics import Finding, finding
from castiron.formats import is_wider, number_format
from castiron.keras.audit.context import Context
from castiron.keras.audit.kernels import HANDS_ON, PRODUCTS
from castiron.keras.audit.records import Op, Value, consumers
from castiron.keras.dtypes import tensorflow_name


def check(context: Context) -> Iterator[Finding]:
    casts = [op for op in context.trace.of("forward", "loss") if context.cast(op) is not None]
    users = [op for op in casts if context.cast(op) == "user"]
    there_and_back = {id(back): there for back in users if (there := _source_cast(context, back)) is not None}
    for op in users:
        there = there_and_back.get(id(op))
        if there is not None and context.cast(there) == "user":
            yield _ping_pong(context, there, op)
    # where the first cast is the plan's own (a layer's output), only the second is the user's doing
    ponged = {id(there) for there in there_and_back.values()} | set(there_and_back)
    for op in users:
        if id(op) not in ponged and op.phase == "forward":
            yield from _users(context, op)
    yield from _repeated(context, users)


def _users(context: Context, op: Op) -> Iterator[Finding]:
    """A cast that the user wrote, to a format that the plan does not have there."""
    source, target = op.operands[0].dtype, op.results[0].dtype
    if target == "float64" and not context.allows_float64:
        return  # F302
    row, policy = context.row(op.module), context.policy
    compute = tensorflow_name(row.compute if row is not None else policy.compute)
    output = tensorflow_name(row.output if row is not None else policy.output)
    if target in (compute, output):
        return
    narrower = target != compute and is_wider(compute, target)
    if not narrower and not _computed_with(context, op.results[0]):
        return
    yield finding(
        "F304",
        f"{op.call.name} puts {source} into {target}, "
        + (
            "which is narrower than anything declared there"
            if narrower
            else "and elementwise operations follow"
        ),
        place=context.place(op),
        expected=compute,
        received=target,
        severity="error" if narrower and target not in context.declared else "warning",
    )


def _computed_with(context: Context, value: Value) -> bool:
    """Whether anything computes with a widened tensor that would not be wide, or be cast back, anyhow."""
    for op in consumers(value, HANDS_ON):
        if op.phase != "forward" or context.is_island(op) or op.name == "Cast" or op.name in PRODUCTS:
            continue
        return True
    return False


def _source_cast(context: Context, op: Op) -> Op | None:
    """The cast whose result, not computed with, this one casts back."""
    value = op.operands[0]
    while value.maker is not None:
        maker = value.maker
        if context.cast(maker) is not None:
            return maker if maker.operands[0].dtype == op.results[0].dtype else None
        same = [v for v in maker.operands if v.dtype == value.dtype]
        if maker.name not in HANDS_ON or not same:
            return None
        value = same[0]
    return None


def _ping_pong(context: Context, there: Op, back: Op) -> Finding:
    a, b = back.results[0].dtype, there.results[0].dtype
    size = there.results[0].size
    wasted = 2 * size * (number_format(a).bits + number_format(b).bits) // 8
    return finding(
        "F309",
        f"a tensor goes from {a} to {b} and back, with nothing computed between"
        + (": every value is rounded" if is_wider(a, b) else ""),
        place=context.place(back),
        expected="no cast",
        received=f"two casts of {size:,} elements ({wasted:,} bytes moved)",
        bytes=wasted,
    )


def _repeated(context: Context, users: list[Op]) -> Iterator[Finding]:
    """The same parameter, cast at the user's own lines more than once."""
    of: dict[tuple[str, str], list[Op]] = {}
    for op in users:
        value = op.operands[0]
        if value.origin is not None and value.origin.kind == "parameter":
            of.setdefault((value.origin.name, op.results[0].dtype), []).append(op)
    for (name, dtype), same in of.items():
        times = sum(op.times for op in same)
        if times < 2:
            continue
        value = same[0].operands[0]
        size = value.size * (number_format(value.dtype).bits + number_format(dtype).bits) // 8
        yield finding(
            "F325",
            f"parameter '{name}' is cast to {dtype} {times} times in one forward pass",
            place=context.place(same[-1]),
            expected="one cast",
            received=f"{times} casts ({size * (times - 1):,} bytes moved for nothing)",
            bytes=size * (times - 1),
        )
