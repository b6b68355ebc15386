"""A variance as a difference of two means is told of, at its line, and only that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from castiron.keras.audit import audit

L, ops = keras.layers, keras.ops


class Spread(keras.Model):
    """Divides by a variance that is computed by hand."""

    def __init__(self, variance: Callable[[Any], Any]) -> None:
        super().__init__()
        self.hidden, self.norm, self.variance = L.Dense(4), L.BatchNormalization(), variance

    def call(self, x: Any, training: bool = False) -> Any:
        h = self.hidden(x)
        return self.norm(h / tf.sqrt(self.variance(h) + 1e-5), training=training)


def by_squares(h: Any) -> Any:
    return ops.mean(h * h, -1, keepdims=True) - ops.mean(h, -1, keepdims=True) ** 2


def by_sums(h: Any) -> Any:
    n = tf.cast(tf.shape(h)[0], h.dtype)
    return tf.reduce_sum(tf.square(h), 0) / n - tf.square(tf.reduce_sum(h, 0) / n)


def by_deviations(h: Any) -> Any:
    return tf.reduce_mean(tf.square(h - tf.reduce_mean(h, -1, keepdims=True)), -1, keepdims=True)


def of_two_things(h: Any) -> Any:
    return tf.abs(tf.reduce_mean(tf.square(h), 0) - tf.square(tf.reduce_mean(h + 1.0, 0)))


CASES = [(by_squares, 1), (by_sums, 1), (by_deviations, 0), (of_two_things, 0), (lambda h: ops.var(h, 0), 0)]


@pytest.mark.parametrize(("variance", "times"), CASES)
def test_a_variance_by_difference(variance: Callable[[Any], Any], times: int) -> None:
    model = Spread(variance)
    x = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")
    model(x)
    report = audit(model, x)
    found = [f for f in report.findings if f.code == "F360"]
    assert len(found) == times, [str(f) for f in report.findings]
    for f in found:
        assert (f.severity, f.place.file) == ("info", __file__)
        assert f.place.line == variance.__code__.co_firstlineno + (1 if variance is by_squares else 2)
        assert "difference of two float32 numbers" in str(f)
