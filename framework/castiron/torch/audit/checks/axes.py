"""F341: a sum over one axis that is divided by the length of another."""

from __future__ import annotations

from collections.abc import Iterator

from castiron.diagnostics import Finding, finding
from castiron.torch.audit.context import Context
from castiron.torch.audit.kernels import MOVES
from castiron.torch.audit.records import Op, consumers
from castiron.training.shapes import reduced_axis


def check(context: Context) -> Iterator[Finding]:
    for op in context.trace.of("forward", "loss"):
        if op.base != "sum" or not op.results or not op.operands or not op.operands[0].is_float:
            continue
        before, after = op.operands[0].shape, op.results[0].shape
        summed = reduced_axis(before, after)
        if summed is None:
            continue
        for use in consumers(op.results[0], tuple(MOVES)):
            if use.base != "div" or len(use.operands) != 1 or len(use.scalars) != 1:
                continue
            number = use.scalars[0]
            others = [n for k, n in enumerate(before) if k != summed]
            if number == before[summed] or number not in others or number < 2 or _is_summed(use):
                continue
            yield finding(
                "F341",
                f"a sum over {before[summed]} numbers (axis {summed} of {list(before)}) is divided by "
                f"{number:g}, the length of another axis",
                place=context.place(use),
                expected=f"a division by {before[summed]}",
                received=f"{number:g}",
            )


def _is_summed(use: Op) -> bool:
    """Whether the quotient is summed as well: then the other axis may be the one that is meant."""
    later = [op for r in use.results for op in consumers(r, tuple(MOVES))]
    return any(op.base == "sum" and op.phase != "backward" for op in later)
