"""An exponential moving average of a model's weights, kept wide, and swapped in for evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from castiron.keras.modules import own_variables, stored_dtype, variables, walk
from castiron.keras.snapshot import Snapshot


class WeightAverage:
    """average ← decay · average + (1 − decay) · weights, after every optimizer step.

    Averages are float32 or wider: with a decay of 0.999 a 16-bit average would not move. During the first
    steps the decay is the smaller of `decay` and (1 + n) / (10 + n), so that the average forgets the initial
    weights (TensorFlow's ExponentialMovingAverage with `num_updates`). Buffers are averages already: they are
    copied.
    """

    def __init__(self, model: Any, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"Expected a decay between 0 and 1. Received {decay}.")
        self.decay = decay
        buffers = {id(v) for _, layer in walk(model) for v in own_variables(layer)[1]}
        self._own = {n: v for n, v in variables(model).items() if tf.as_dtype(stored_dtype(v)).is_floating}
        self._copied = {n for n, v in self._own.items() if id(v) in buffers}
        self.averages = {
            n: tf.Variable(tf.cast(v._value, _wide(v)), trainable=False) for n, v in self._own.items()
        }
        self.updates = tf.Variable(0, dtype=tf.int64, trainable=False)

    def update(self) -> None:
        """Take the present weights into the average, in the graph. Call it once per committed step."""
        n = tf.cast(self.updates.assign_add(1), tf.float64)
        weight = 1 - tf.minimum(tf.constant(self.decay, tf.float64), (1 + n) / (10 + n))
        for name, average in self.averages.items():
            new = tf.cast(self._own[name]._value, average.dtype)
            if name in self._copied:
                average.assign(new)
            else:
                average.assign_add((new - average) * tf.cast(weight, average.dtype))

    def take_over(self, former: WeightAverage) -> None:
        """Go on from another average of the same weights."""
        self.updates.assign(former.updates)
        for name, average in self.averages.items():
            average.assign(tf.cast(former.averages[name], average.dtype))

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within it, the model has the averages, rounded to its formats; afterwards its own weights, bit for
        bit."""
        kept = Snapshot([v._value for v in self._own.values()])
        before = kept.take()
        try:
            for name, variable in self._own.items():
                variable._value.assign(tf.cast(self.averages[name], variable._value.dtype))
            yield
        finally:
            kept.put_back(before)


def _wide(variable: Any) -> str:
    return "float64" if stored_dtype(variable) == "float64" else "float32"
