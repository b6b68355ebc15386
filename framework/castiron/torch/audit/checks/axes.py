"""F341: a sum over one axis that is divided by the length of another."""

from __future__ import annotations

from collections.abc import Iterator

from castiron.diagnostics import Finding
from castiron.torch.audit.context import Context
from castiron.torch.audit.kernels import MOVES
from castiron.torch.audit.records import Op, consumers
from castiron.training.shapes import reduced_axis, wrong_length


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
            found = wrong_length(before, summed, use.scalars[0], context.place(use))
            if found is not None and not _is_summed(use):
                yield found


def _is_summed(use: Op) -> bool:
    """Whether the quotient is summed as well: then the other axis may be the one that is meant."""
    later = [op for r in use.results for op in consumers(r, tuple(MOVES))]
    return any(op.base == "sum" and op.phase != "backward" for op in later)
