"""The words for what an operation did to a step, the same for every framework."""

from __future__ import annotations

from collections.abc import Sequence

from castiron.formats import number_format
from castiron.training.incident import Attribution, Event, Link, Phase, Producer, TensorStatistics

CODES: dict[Event, str] = {
    "overflow": "N501",
    "zero-over-zero": "N502",
    "zero-times-inf": "N503",
    "domain": "N504",
    "inherited": "N506",
    "data": "N507",
    "optimizer": "N508",
    "not-reproduced": "N509",
    "scaling": "S401",
}
"""Event → code of the catalogue."""


def floats_of(operands: Sequence[TensorStatistics]) -> list[TensorStatistics]:
    """Those of floating point that hold a finite number."""
    return [o for o in operands if o.max is not None and "int" not in o.dtype and o.dtype != "bool"]


def overflows(op: str, floats: Sequence[TensorStatistics], results: Sequence[TensorStatistics]) -> str:
    """That an operation overflowed: what its operands reach, and where the format of its results ends."""
    dtype = results[0].dtype if results else ""
    largest = max((max(abs(o.max or 0), abs(o.min or 0)) for o in floats), default=None)
    ends = f"{dtype} ends at {number_format(dtype).max:g}" if dtype else ""
    got = f"operands reach {largest:g}" if largest is not None else ""
    detail = "; ".join(x for x in (got, ends) if x)
    return f"{op} overflows{f' {dtype}' if dtype else ''}" + (f" ({detail})" if detail else "")


def gave(results: Sequence[TensorStatistics]) -> str:
    """What its results hold that is not finite, counted."""
    nan, pos, neg = (sum(getattr(r, k) for r in results) for k in ("nan", "posinf", "neginf"))
    parts = [f"{n:,} {what}" for n, what in ((nan, "NaN"), (pos, "+inf"), (neg, "-inf")) if n]
    total = 1
    for r in results[:1]:
        for size in r.shape:
            total *= size
    return (" and ".join(parts) or "no finite result") + (f" of {total:,}" if len(results) == 1 else "")


def against_overflow(module: str | None, dtype: str | None, scale: float, phase: Phase) -> str:
    """What to do where an operation overflowed."""
    if phase == "backward" and scale > 1:
        return f"The loss is scaled by {scale:g}: lower it; `scaling: {{kind: dynamic}}` does so by itself."
    if dtype in ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"):
        layer = f"`precision: {{layers: {{'{module}': {{compute: float32}}}}}}`" if module else "float32"
        return f"Compute it in {layer}, or make its operands smaller (scale, normalise)."
    return "Make its operands smaller: normalise the inputs, lower the learning rate, clip gradients."


def bad_field(
    name: str, rows: Sequence[int] | None, of: int | None, operand: TensorStatistics, chain: tuple[Link, ...]
) -> Attribution:
    """That the batch came with it.

    Args:
        name: of the batch's field.
        rows: those that are bad, where the field has one entry for each of the batch's `of` rows.
        operand: the field.
    """
    count = f" in {rows_text(rows)} of {of:,}" if rows and of else ""
    return Attribution(
        code=CODES["data"],
        phase="data",
        event="data",
        message=f"Field '{name}' of the batch is not finite{count}",
        producer=Producer(parameter=name),
        operands=(operand,),
        chain=chain,
        remedy="Mend or leave out these rows; a data contract refuses them at load "
        "(`missing`, `minimum`, `maximum` of the field).",
    )


def rows_text(rows: Sequence[int]) -> str:
    """`rows 3, 6`: the first five, and how many more."""
    shown = ", ".join(str(r) for r in rows[:5])
    more = f" and {len(rows) - 5:,} more" if len(rows) > 5 else ""
    return f"row{'s' if len(rows) != 1 else ''} {shown}{more}"
