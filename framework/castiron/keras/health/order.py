"""The parts of a layer's gradient that tell what the order of accumulation does to it, in the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from castiron.health.dynamics import PARTS, accumulation_noise

_UNITS = 64
"""Units of a layer, at most, whose gradient is looked at: every n-th."""


def parts_of(gradient: Any, axis: int) -> Any | None:
    """`castiron.health.dynamics.parts_of`, of a sample of the units. float64 [PARTS, units]; zeros where
    there are fewer rows than parts; None where the graph does not know yet how many units there are.

    Args:
        gradient: of the loss with respect to what a layer hands on.
        axis: of its units.
    """
    rank = gradient.shape.rank
    units = None if rank is None or rank < 2 else gradient.shape[axis]
    if units is None:
        return None
    last = axis % rank
    stride = max(-(-units // _UNITS), 1)
    moved = tf.transpose(gradient, [*(d for d in range(rank) if d != last), last])
    rows = tf.reshape(moved[..., ::stride], [-1, len(range(0, units, stride))])
    count = tf.shape(rows)[0]
    # As numpy.array_split has it: the first parts have one row more.
    small, longer = count // PARTS, count % PARTS
    row = tf.range(count)
    split = longer * (small + 1)
    late = longer + (row - split) // tf.maximum(small, 1)
    part = tf.where(row < split, row // (small + 1), late)
    sums = tf.math.unsorted_segment_sum(tf.cast(rows, tf.float64), part, PARTS)
    return tf.where(count < PARTS, tf.zeros_like(sums), sums)


def noise_of(parts: Mapping[str, Any], kept_in: Mapping[str, str]) -> dict[str, float]:
    """The noise by layer, on the host.

    Args:
        kept_in: layer → format in which the gradients of its parameters are added up.
    """
    found = {}
    for layer, terms in parts.items():
        with np.errstate(all="ignore"):
            dtype = next((d for of, d in kept_in.items() if f"{of}.".startswith(f"{layer}.")), None)
            noise = None if dtype is None else accumulation_noise(terms.numpy(), dtype)
        if noise is not None:
            found[layer] = noise
    return found
