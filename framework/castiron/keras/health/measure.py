"""`castiron.health.statistics.measure`, in a graph: a group of tensors becomes one short vector.

All of it is counted on the bits of the numbers as integers: TensorFlow's kernels take subnormal numbers for
zero.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from castiron.formats import number_format
from castiron.health.rounding import highest_exponent, overflows_from
from castiron.health.statistics import (
    SAMPLE,
    Statistics,
    WhatIf,
    best_scale,
    bins_of,
    edges,
    from_counts,
    snr_db,
)
from castiron.keras.dtypes import dtype_name

Group = dict[str, Any]
"""What a graph gives of one group: `figures` int64, `squares` float64, and `sample` where it was asked."""


def measured(tensors: Sequence[Any], formats: Sequence[str] = ()) -> Group:
    """A group of tensors, all of one format, measured in the graph.

    Args:
        formats: those to ask about.
    """
    bits = _bits(dtype_name(tensors[0].dtype))
    x = _joined(tensors, bits.real)
    m = tf.bitwise.bitwise_and(tf.bitcast(x, bits.kind), tf.constant(bits.magnitude, bits.kind))
    exponents = tf.bitwise.right_shift(m, tf.constant(bits.fraction, bits.kind))
    counts = tf.raw_ops.DenseBincount(
        input=tf.cast(exponents, tf.int32), size=bits.bins, weights=tf.zeros([0], tf.int64)
    )
    infinity = tf.constant(bits.infinity, bits.kind)
    finite = m < infinity
    zeros = tf.math.count_nonzero(tf.equal(m, 0))
    nans = tf.math.count_nonzero(m > infinity)
    largest = tf.reduce_max(tf.where(finite, m, 0), keepdims=True)
    smallest = tf.reduce_min(tf.where(tf.logical_and(finite, m > 0), m, infinity), keepdims=True)
    pieces = [
        counts,
        tf.stack([tf.size(m, tf.int64), zeros, nans]),
        tf.cast(largest, tf.int64),
        tf.cast(smallest, tf.int64),
    ]
    for name in formats:
        table = tf.constant(_table(name, bits.bins), bits.kind)
        marks = tf.gather(table, _row(largest[0], name, bits))
        pieces.append(tf.math.count_nonzero((finite & (m > 0))[:, None] & (m[:, None] >= marks[None, :]), 0))
    wide = tf.where(finite, tf.cast(x, tf.float64), tf.zeros([], tf.float64))
    group: Group = {"figures": tf.concat(pieces, 0), "squares": tf.reduce_sum(wide * wide)}
    if formats:
        stride = tf.maximum((tf.size(x) + SAMPLE - 1) // SAMPLE, 1)
        group["sample"] = x[::stride]
    return group


def peak(tensor: Any) -> Any:
    """The largest magnitude of a tensor; infinite where an element is not finite. float64, 0-dim."""
    bits = _bits(dtype_name(tensor.dtype))
    m = tf.bitwise.bitwise_and(
        tf.bitcast(_joined([tensor], bits.real), bits.kind), tf.constant(bits.magnitude, bits.kind)
    )
    largest = tf.minimum(tf.reduce_max(m), tf.constant(bits.infinity, bits.kind))
    return tf.cast(tf.bitcast(largest, bits.real), tf.float64)


def read(group: Group, dtype: str, formats: Sequence[str] = ()) -> Statistics | None:
    """The statistics in what a graph gave; None of a group without elements."""
    bits = _bits(dtype)
    figures = np.asarray(group["figures"])
    counts = figures[: bits.bins].copy()
    size, zeros, nans, high, low = (int(n) for n in figures[bits.bins : bits.bins + 5])
    if size == 0:
        return None
    largest = bits.number(high)
    live = size - zeros - int(counts[-1])
    what_if: dict[str, WhatIf] = {}
    for i, name in enumerate(formats):
        scale = best_scale(largest, number_format(name))
        found = [int(n) for n in figures[bits.bins + 5 + 6 * i : bits.bins + 11 + 6 * i]]
        picked = np.asarray(group["sample"]).astype(np.float64)
        plain, scaled = snr_db(picked, name), snr_db(picked, name, scale)
        what_if[name] = from_counts(name, live, scale, found[:3], found[3:], plain, scaled)
    return Statistics(
        dtype=dtype,
        size=size,
        exponents=counts,
        zeros=zeros,
        nans=nans,
        largest=largest,
        smallest=bits.number(low) if high else 0.0,
        squares=float(group["squares"]),
        what_if=what_if,
    )


# --- bits ----------------------------------------------------------------------------------------------


class _Bits:
    """How a float of the histogram's format lies in its bits."""

    def __init__(self, wide: bool) -> None:
        self.bins, self.fraction = (2048, 52) if wide else (256, 23)
        self.real, self.kind = (tf.float64, tf.int64) if wide else (tf.float32, tf.int32)
        self.real_np: Any = np.float64 if wide else np.float32
        self.kind_np: Any = np.int64 if wide else np.int32
        self.magnitude = 2**63 - 1 if wide else 2**31 - 1
        self.infinity = (self.bins - 1) << self.fraction
        self.bias = self.bins // 2 - 1

    def number(self, pattern: int) -> float:
        return float(np.asarray(pattern, self.kind_np).view(self.real_np))


_NARROW, _WIDE = _Bits(False), _Bits(True)


def _bits(dtype: str) -> _Bits:
    return _WIDE if bins_of(dtype) == 2048 else _NARROW


def _joined(tensors: Sequence[Any], real: Any) -> Any:
    flat = [tf.reshape(t if t.dtype == real else tf.cast(t, real), [-1]) for t in tensors]
    return flat[0] if len(flat) == 1 else tf.concat(flat, 0)


def _row(largest: Any, name: str, bits: _Bits) -> Any:
    """Where the table has the edges for a largest magnitude: two rows for each binary exponent, also those of
    subnormal numbers; the second where the best scale is one lower, as the upper part of the binade would
    overflow."""
    fraction = bits.fraction
    exponent = tf.cast(tf.bitwise.right_shift(largest, tf.constant(fraction, bits.kind)), tf.int32)
    subnormal = tf.equal(exponent, 0)
    # The first bit of a subnormal number: as an integer it converts exactly, to a number that is none.
    whole = tf.bitcast(tf.cast(largest, bits.real), bits.kind)
    first = tf.bitwise.right_shift(whole, tf.constant(fraction, bits.kind))
    lead = tf.clip_by_value(tf.cast(first, tf.int32) - bits.bias, 0, fraction - 1)
    moved = tf.bitwise.left_shift(largest, tf.cast(fraction - lead, bits.kind))
    low = tf.bitwise.bitwise_and(
        tf.where(subnormal, moved, largest), tf.constant((1 << fraction) - 1, bits.kind)
    )
    of = number_format(name)
    over = math.ceil((overflows_from(of) / 2.0 ** highest_exponent(of) - 1) * 2**fraction)
    upper = tf.cast(low >= tf.constant(over, bits.kind), tf.int32)
    return 2 * tf.where(subnormal, lead, exponent + fraction - 1) + upper


@functools.cache
def _table(name: str, bins: int) -> np.ndarray:
    """Bits of the magnitudes at which a format changes what it makes of a number: three as it is, three at
    the best scale; a row for each place of the largest magnitude. [2 * places, 6]"""
    bits = _WIDE if bins == 2048 else _NARROW
    highest = highest_exponent(number_format(name))
    rows = []
    for place in range(bins - 2 + bits.fraction):
        for upper in (0, 1):
            scale = highest - (place - bits.fraction + 1 - bits.bias) - upper
            rows.append([*edges(name), *edges(name, scale)])
    with np.errstate(over="ignore", under="ignore"):
        marks = np.asarray(rows, np.float64)
        real = marks.astype(bits.real_np)
        real = np.where(real.astype(np.float64) < marks, np.nextafter(real, bits.real_np(np.inf)), real)
    patterns: np.ndarray = real.view(bits.kind_np)
    return patterns
