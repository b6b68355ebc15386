"""The decision of a step, in the graph: is everything finite that must be?

One verdict for a whole optimizer step, from each micro-batch's loss, all gradients (after unscaling, before
clipping: clipping by a norm that is not finite destroys the evidence), buffers, and what else the policy
watches. It is made of plain reductions, so that it is the same in eager mode, in a `tf.function` and under
XLA, where TensorFlow's own check_numerics does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from castiron.policy.sections import GuardTarget
from castiron.training.held import Verdict

UPDATED: frozenset[GuardTarget] = frozenset({"parameters", "optimizer"})
"""What an optimizer's step changes: looked at after it, such a step can still be undone."""
KNOWN: tuple[GuardTarget, ...] = ("loss", "gradients", "buffers", "parameters", "optimizer")
"""What this wing watches."""

Watched = Mapping[str, Mapping[str, Any]]
"""What is watched (loss, gradients …) → name → tensor."""


def sum_of_squares(tensors: Sequence[Any]) -> Any:
    """Half the sum of the squares of all elements, at least in float32. Finite only if every element is."""
    parts = [
        tf.nn.l2_loss(t if t.dtype in (tf.float32, tf.float64) else tf.cast(t, tf.float32)) for t in tensors
    ]
    if not parts:
        return tf.constant(0.0)
    wide = tf.float64 if any(p.dtype == tf.float64 for p in parts) else tf.float32
    return tf.add_n([tf.cast(p, wide) for p in parts])


def all_finite(tensors: Sequence[Any], squares: Any = None) -> Any:
    """Whether every element of every floating-point tensor is finite: boolean, in the graph.

    The sum of squares is read in one pass and settles it where it is finite. Where it is not (finite values
    from about 1e19 on overflow in it), every element is looked at.

    Args:
        squares: `sum_of_squares` of these tensors, where it is there already.
    """
    floats = [t for t in tensors if t.dtype.is_floating]
    if not floats:
        return tf.constant(True)
    squares = sum_of_squares(floats) if squares is None else squares
    return tf.cond(
        tf.math.is_finite(squares),
        lambda: tf.constant(True),
        lambda: tf.reduce_all(tf.stack([tf.reduce_all(tf.math.is_finite(t)) for t in floats])),
    )


def flags(watched: Watched) -> Any:
    """For each watched tensor, in order, whether it holds something that is not finite: boolean [n]."""
    found = [
        tf.logical_not(tf.reduce_all(tf.math.is_finite(t)))
        for tensors in watched.values()
        for t in tensors.values()
    ]
    return tf.stack(found) if found else tf.zeros([0], tf.bool)


def verdict_of(names: Sequence[tuple[str, str]], flagged: Any) -> Verdict:
    """The verdict, on the host.

    Args:
        names: (what, name) of each flag.
        flagged: `flags` of the step.
    """
    seen: dict[str, tuple[str, ...]] = {}
    micro = []
    for (what, name), bad in zip(names, np.asarray(flagged), strict=True):
        if bad:
            seen[what] = (*seen.get(what, ()), name)
            if what == "loss":
                micro.append(int(name.rpartition(" ")[2]))
    return Verdict(bool(seen), seen, tuple(micro))
