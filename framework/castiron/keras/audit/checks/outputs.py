"""F310, F311, F317, F318: the loss, what layers hand on, and the batch axis."""

from __future__ import annotations

from collections.abc import Iterator

from castiron.diagnostics import Finding, Place, finding
from castiron.formats import is_wider
from castiron.keras.audit.context import Context
from castiron.keras.audit.records import Op
from castiron.keras.dtypes import tensorflow_name
from castiron.keras.modules import is_container
from castiron.training.source_lines import place


def check(context: Context) -> Iterator[Finding]:
    yield from _loss(context)
    yield from _layers(context)
    yield from _broadcast(context)
    yield from _batch_axis(context)


def _loss(context: Context) -> Iterator[Finding]:
    loss = context.trace.loss
    if loss is None or loss.dtype == tensorflow_name(context.policy.loss):
        return
    at = context.place(loss.maker) if loss.maker is not None else Place(op="loss", phase="loss")
    roots = [r for r in context.roots(loss) if r.value is not loss]
    because = f", because of {roots[0]}" if roots else ""
    yield finding(
        "F310",
        f"the loss is not in the declared format{because}",
        place=at,
        expected=context.policy.loss,
        received=loss.dtype,
        remedy="Cast the outputs before the loss (a function of keras.losses computes in the format of its "
        "outputs; a Loss object in floatx), or declare `loss:`.",
    )


def _layers(context: Context) -> Iterator[Finding]:
    said: set[str] = set()
    for left in context.trace.outputs:
        row = context.row(left.path)
        if row is None or row.path != left.path or left.path in said:
            continue
        layer = context.layers.get(left.path)
        activation = context.row(f"{left.path}.activation" if left.path else "activation")
        declared = {tensorflow_name(row.output)}
        if activation is not None and activation.path != left.path:
            declared.add(tensorflow_name(activation.output))
        for value in left.values:
            if not value.is_float or value.dtype in declared:
                continue
            if value.dtype == "float64" and not context.allows_float64:
                continue
            # containers hand on what is in them; a wider result is theirs to keep
            widest = max(declared, key=lambda d: is_wider(d, "bfloat16"))
            narrower = all(is_wider(d, value.dtype) for d in declared)
            free = not row.ruled and (row.family is None or (layer is not None and is_container(layer)))
            if free and not narrower:
                continue
            said.add(left.path)
            yield finding(
                "F311",
                f"{'the model' if not left.path else f'a {row.type}'} hands on {value.dtype}",
                place=place(left.lines, left.path, None, "forward"),
                expected=row.output if row.output != value.dtype else widest,
                received=str(value.format),
                remedy="Remove the cast at the end of the layer's call, or declare its `output`.",
            )
            break


def _broadcast(context: Context) -> Iterator[Finding]:
    told: set[object] = set()
    for op in context.trace.of("loss"):
        pair = _grows(op)
        size = context.trace.batch_size
        if pair is None or op.lines[:1] in told or (size is not None and op.results[0].shape[:1] != (size,)):
            continue
        told.add(op.lines[:1])
        yield finding(
            "F317",
            f"{op.title} broadcasts {list(pair[0])} against {list(pair[1])} to "
            f"{list(op.results[0].shape)}: every output is compared with every target",
            place=context.place(op),
            expected="one shape",
            received=f"{list(pair[0])} and {list(pair[1])}",
            remedy="Give both one shape: outputs[:, 0], or targets[:, None].",
        )


def _grows(op: Op) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The shapes [B, 1] and [B] whose difference is [B, B]."""
    if op.name not in ("Sub", "Mul", "RealDiv", "AddV2", "SquaredDifference") or len(op.operands) != 2:
        return None
    a, b = op.operands[0].shape, op.operands[1].shape
    for long, short in ((a, b), (b, a)):
        if len(long) == 2 and long[1] == 1 and len(short) == 1 and long[0] == short[0] > 1:
            return a, b
    return None


def _batch_axis(context: Context) -> Iterator[Finding]:
    size, results = context.trace.batch_size, context.trace.results
    if size is None or size < 2 or not results:
        return
    with_axes = [v for v in results if v.shape and -1 not in v.shape]
    if not with_axes or any(size in v.shape for v in with_axes):
        return
    # a multiple may be the batch folded with another axis (tokens, boxes); a fraction is samples merged
    worst = max(with_axes, key=lambda v: v.shape[0])
    if any(extent % size == 0 and extent >= size for v in with_axes for extent in v.shape):
        return
    yield finding(
        "F318",
        f"no axis of the output is as long as the batch ({size})",
        place=context.place(worst.maker) if worst.maker is not None else Place(module=""),
        expected=f"[{size}, …]",
        received=str(worst.format),
        remedy="Keep the batch axis in every reshape: keras.ops.reshape(x, (len(x), -1)).",
    )
