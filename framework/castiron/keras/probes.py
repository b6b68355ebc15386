"""Small layers of each family, to see what a device computes and how long it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from castiron.keras.dtypes import NARROW
from castiron.keras.precision import layer_policy
from castiron.policy import Family

Probe = Callable[[], None]
"""One forward and backward pass; raises where the device cannot do it."""

_PRODUCTS = ("matmul", "conv", "lstm", "gru", "rnn", "attention")


class ProbedAttention(keras.layers.Layer):
    def __init__(self, dtype: Any) -> None:
        super().__init__(dtype=dtype)
        self.attention = keras.layers.MultiHeadAttention(4, 16, dtype=dtype)

    def build(self, shape: Any) -> None:
        self.attention.build(shape, shape)

    def call(self, x: Any) -> Any:
        return self.attention(x, x)


def _layer(family: Family, dtype: Any) -> tuple[Any, tuple[int, ...]]:
    """A layer and the shape of its input; about a millisecond of float32 work on one core."""
    layers = keras.layers
    match family:
        case "matmul":
            return layers.Dense(256, dtype=dtype), (32, 256)
        case "conv":
            return layers.Conv2D(16, 3, padding="same", dtype=dtype), (2, 16, 16, 16)
        case "lstm":
            return layers.LSTM(64, return_sequences=True, dtype=dtype), (8, 8, 64)
        case "gru":
            return layers.GRU(64, return_sequences=True, dtype=dtype), (8, 8, 64)
        case "rnn":
            return layers.SimpleRNN(64, return_sequences=True, dtype=dtype), (8, 8, 64)
        case "attention":
            return ProbedAttention(dtype), (4, 32, 64)
        case "softmax":
            return layers.Softmax(dtype=dtype), (64, 16, 64)
        case "normalization":
            return layers.LayerNormalization(dtype=dtype), (64, 16, 64)
        case "embedding":
            return layers.Embedding(1000, 64, dtype=dtype), (64, 16)
        case "elementwise":
            return layers.Activation("gelu", dtype=dtype), (64, 16, 64)


def make_probe(family: Family, name: str) -> Probe:
    """A forward and backward pass of a family in a format. Eager: to compile it would take far longer.

    Products and recurrent layers of 16 bits keep float32 parameters; every other layer is stored in the
    format itself.
    """
    mixed = name in NARROW and family in _PRODUCTS
    layer, shape = _layer(family, layer_policy("float32" if mixed else name, name))
    if family == "embedding":
        x = tf.reshape(tf.range(shape[0] * shape[1], dtype=tf.int64) % 1000, shape)
    else:
        x = tf.cast(tf.linspace(-1.0, 1.0, int(tf.reduce_prod(shape))), name)
        x = tf.reshape(x, shape)
    layer.build(shape)

    def run() -> None:
        with tf.GradientTape() as tape:
            if family != "embedding":
                tape.watch(x)
            out = layer(x)
        watched = [v.value for v in layer.trainable_variables] or [x]
        for gradient in tape.gradient(out, watched):
            tf.convert_to_tensor(gradient)

    return run
