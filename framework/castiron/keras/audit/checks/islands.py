"""F308, F316, F320, F321: what 16 bits are too few for."""

from __future__ import annotations

import re
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import tensorflow as tf

from castiron.diagnostics import Finding, finding
from castiron.keras.audit.context import Context
from castiron.keras.audit.kernels import ISLANDS, WIDE_WITHIN
from castiron.keras.audit.records import Op
from castiron.keras.dtypes import NARROW

_CHAIN = 8
"""So many additions to one 16-bit scalar are a running sum."""
_SMALL_SUM = 32
"""A sum of so few terms is exact enough in 16 bits."""
_NUMBER = re.compile(r"(?<![\w.])(\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?)")
_REMEDY = (
    "Compute it in float32: keras.ops.cast(x, 'float32') before, and back after; or declare it: "
    "islands: {{{}: null}}."
)


def check(context: Context) -> Iterator[Finding]:
    for op in context.trace.of("forward", "loss"):
        yield from _island(context, op)
        yield from _number(context, op)
    yield from _running_sums(context)


def _island(context: Context, op: Op) -> Iterator[Finding]:
    kind = ISLANDS.get(op.name)
    if kind is None or not context.is_island(op) or not op.floats:
        return
    narrow = op.floats[0].dtype
    if narrow not in NARROW or (op.name, narrow) in WIDE_WITHIN:
        return
    row = context.row(op.module)
    if row is not None and row.ruled and row.compute == narrow:
        return  # a layer rule says so
    if kind == "reductions" and _terms(op) <= _SMALL_SUM:
        return
    if op.name in ("Sum", "Mean") and along_the_last_axis(op):
        return  # carried in float32 within the kernel
    wide = "float32" if kind == "loss" else getattr(context.policy.islands, kind)
    yield finding(
        "F308",
        f"{op.title} computes in {narrow}",
        place=context.place(op),
        expected=f"{wide} ({'the loss' if kind == 'loss' else f'islands.{kind}'})",
        received=narrow,
        remedy=_REMEDY.format(kind) if kind != "loss" else "Cast the outputs to float32 before the loss.",
    )


def _terms(op: Op) -> int:
    before = max((v.size for v in op.operands), default=0)
    after = max((v.size for v in op.results), default=1)
    if op.name.startswith("Cum"):
        return max(op.operands[0].shape, default=1)
    return before // max(after, 1)


def along_the_last_axis(op: Op) -> bool:
    """Whether a sum runs over the last axis alone, or over all: there float16 is carried in float32."""
    axes = tf.get_static_value(op.node.inputs[1])
    rank = len(op.operands[0].shape)
    if axes is None:
        return False
    found = {int(a) % rank for a in np.ravel(axes)} if rank else set()
    return found == {rank - 1} or len(found) == rank


def _number(context: Context, op: Op) -> Iterator[Finding]:
    """Plain numbers in the code that the tensor's format cannot hold: infinite or zero by now."""
    if op.name != "Const" or not op.results or op.results[0].dtype not in NARROW:
        return
    source, narrow = op.source, op.results[0].dtype
    if source is None or not op.call.by_user:
        return
    value = np.asarray(tf.get_static_value(op.node.outputs[0]), np.float64).ravel()
    limits = ml_dtypes.finfo(tf.as_dtype(narrow).as_numpy_dtype)
    user = next(iter(op.results[0].consumers), op)
    written = [float(n) for n in _NUMBER.findall(source.text)]
    too_large = [n for n in written if n > float(limits.max)]
    least = float(limits.smallest_subnormal)
    too_small = [n for n in written if 0 < n < least / 2]
    if np.isinf(value).any() and too_large:
        yield finding(
            "F320",
            f"{max(too_large):g} is infinite in the {narrow} tensor that {user.title} takes",
            place=context.place(user if user.source is not None else op),
            expected=f"magnitudes up to {float(limits.max):g}",
            received=f"{max(too_large):g}",
            remedy="Use x.dtype.min or x.dtype.max for masks, or compute it in float32.",
        )
    elif (value == 0).any() and too_small:
        yield finding(
            "F321",
            f"{max(too_small):g} is zero in the {narrow} tensor that {user.title} takes",
            place=context.place(user if user.source is not None else op),
            expected=f"magnitudes from {least:g}",
            received=f"{max(too_small):g}",
            remedy="Compute it in float32, or take an eps that the format has: "
            f"{float(limits.smallest_normal):g}.",
        )


def _running_sums(context: Context) -> Iterator[Finding]:
    """Chains of additions to one 16-bit scalar, written out or in a loop."""
    length: dict[int, int] = {}
    for op in context.trace.of("forward", "loss"):
        if op.name not in ("AddV2", "Add") or not op.results:
            continue
        if op.results[0].dtype not in NARROW or op.results[0].shape:
            continue
        so_far = op.times + max((length.get(id(v), 0) for v in op.operands), default=0)
        length[id(op.results[0])] = so_far
        if so_far >= _CHAIN and so_far - op.times < _CHAIN:
            yield finding(
                "F316",
                f"a sum is carried on in a {op.results[0].dtype} scalar, term by term",
                place=context.place(op),
                expected=context.policy.accumulate,
                received=op.results[0].dtype,
                remedy="Accumulate in float32: total = keras.ops.zeros((), 'float32').",
            )
