"""F319: logarithms of probabilities that 16 bits have rounded to one."""

from __future__ import annotations

from collections.abc import Iterator

from castiron.diagnostics import Finding, finding
from castiron.keras.audit.context import Context
from castiron.keras.audit.kernels import HANDS_ON
from castiron.keras.audit.records import Op
from castiron.keras.dtypes import NARROW

_THROUGH = HANDS_ON | frozenset(("Cast", "Minimum", "Maximum", "ClipByValue", "Sub", "AddV2", "Add", "Neg"))
_LARGEST = {"bfloat16": "6.2", "float16": "8.3"}
"""Beyond this output a sigmoid is one: ln(2/spacing below one)."""


def check(context: Context) -> Iterator[Finding]:
    told: set[int] = set()
    for op in context.trace.of("forward", "loss"):
        if op.name not in ("Log", "Log1p") or not op.floats:
            continue
        sigmoid = _sigmoid(op)
        if sigmoid is None or id(sigmoid) in told:
            continue
        told.add(id(sigmoid))
        narrow = sigmoid.results[0].dtype
        infinite = op.floats[0].dtype in NARROW
        outcome = "the loss is infinite" if infinite else "the loss is clipped, and its gradient zero"
        yield finding(
            "F319",
            f"the logarithm of a sigmoid in {narrow}, which is 1 for outputs above {_LARGEST[narrow]}: there "
            f"{outcome}",
            place=context.place(op if op.source is not None else sigmoid),
            expected="a loss of the outputs before the sigmoid (from_logits=True)",
            received=f"probabilities in {narrow}",
            remedy="Leave the sigmoid out of the model, and give from_logits=True to the loss; or let the "
            "last layer compute in float32: a layer rule.",
            severity="error" if infinite else "warning",
        )


def _sigmoid(log: Op) -> Op | None:
    """The narrow sigmoid that a logarithm's operand comes from."""
    waiting, seen = list(log.floats[:1]), set[int]()
    while waiting and len(seen) < 32:
        value = waiting.pop()
        if id(value) in seen or value.maker is None:
            continue
        seen.add(id(value))
        maker = value.maker
        if maker.name == "Sigmoid":
            return maker if maker.results[0].dtype in NARROW else None
        if maker.name in _THROUGH:
            waiting.extend(maker.floats)
    return None
