"""Models with nothing wrong: nothing above a note is said of them, under any policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from castiron.keras.audit import audit

L = keras.layers
RNG = np.random.default_rng(0)
MODELS: dict[str, Callable[[], tuple[Any, Any, Any]]] = {}


def model(make: Callable[[], tuple[Any, Any, Any]]) -> Callable[[], tuple[Any, Any, Any]]:
    """A function that gives model, batch and targets."""
    MODELS[make.__name__] = make
    return make


def series(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype("float32")


TARGETS = np.array([0, 1, 0, 1])
IDS = RNG.integers(0, 50, size=(4, 40))


@model
def dense() -> Any:
    return keras.Sequential([keras.Input((8,)), L.Dense(6, "relu"), L.Dense(3)]), series(4, 8), TARGETS


@model
def dense_with_softmax_and_dropout() -> Any:
    layers = [keras.Input((8,)), L.Dense(6, "gelu"), L.Dropout(0.5), L.Dense(3, "softmax")]
    return keras.Sequential(layers), series(4, 8), TARGETS


@model
def convolution_and_batch_norm() -> Any:
    layers = [
        keras.Input((12, 12, 3)), L.Conv2D(4, 3, padding="same"), L.BatchNormalization(), L.ReLU(),
        L.MaxPooling2D(), L.SeparableConv2D(4, 3), L.Conv2DTranspose(4, 3), L.GlobalAveragePooling2D(),
        L.Dense(3),
    ]  # fmt: skip
    return keras.Sequential(layers), series(4, 12, 12, 3), TARGETS


@model
def lstm() -> Any:
    layers = [keras.Input((40,), dtype="int64"), L.Embedding(50, 8), L.LSTM(6), L.Dense(3)]
    return keras.Sequential(layers), IDS, TARGETS


@model
def lstm_with_masked_padding() -> Any:
    layers = [keras.Input((40,), dtype="int64"), L.Embedding(50, 8, mask_zero=True), L.LSTM(6), L.Dense(3)]
    return keras.Sequential(layers), IDS, TARGETS


@model
def unrolled_lstm() -> Any:
    return (
        keras.Sequential([keras.Input((5, 8)), L.LSTM(6, unroll=True), L.Dense(3)]),
        series(4, 5, 8),
        TARGETS,
    )


@model
def gru() -> Any:
    layers = [keras.Input((40, 8)), L.GRU(6, return_sequences=True), L.GRU(6), L.Dense(3)]
    return keras.Sequential(layers), series(4, 40, 8), TARGETS


@model
def bidirectional() -> Any:
    layers = [keras.Input((40, 8)), L.Bidirectional(L.LSTM(6)), L.LayerNormalization(), L.Dense(3)]
    return keras.Sequential(layers), series(4, 40, 8), TARGETS


@model
def stateful_lstm() -> Any:
    x = keras.Input(batch_shape=(4, 10, 8))
    return keras.Model(x, L.Dense(3)(L.LSTM(6, stateful=True)(x))), series(4, 10, 8), TARGETS


@model
def attention() -> Any:
    x = keras.Input((40, 8))
    y = L.LayerNormalization()(x + L.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True))
    y = L.GlobalAveragePooling1D()(y + L.Dense(8, "gelu")(y))
    return keras.Model(x, L.Dense(3)(y)), series(4, 40, 8), TARGETS


@model
def bag_of_words() -> Any:
    class Bag(L.Layer):
        """Mean of the embeddings of a row, as an EmbeddingBag has it."""

        def __init__(self) -> None:
            super().__init__()
            self.table = L.Embedding(50, 8)

        def call(self, ids):
            return keras.ops.mean(self.table(ids), axis=1)

    return keras.Sequential([keras.Input((40,), dtype="int64"), Bag(), L.Dense(3)]), IDS, TARGETS


@model
def layers_of_a_users_own() -> Any:
    class Gate(L.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[-1], shape[-1]), name="kernel")
            self.bias = self.add_weight(shape=(shape[-1],), initializer="zeros", name="bias")
            super().build(shape)

        def call(self, x):
            return x * tf.sigmoid(tf.matmul(x, self.kernel) + self.bias)

    return keras.Sequential([keras.Input((8,)), Gate(), L.Dense(3)]), series(4, 8), TARGETS


@model
def subclassed_with_positions() -> Any:
    class Tagger(keras.Model):
        def __init__(self):
            super().__init__()
            self.words, self.places = L.Embedding(50, 8), L.Embedding(64, 8)
            self.norm, self.head = L.LayerNormalization(), L.Dense(3)
            self(tf.ones((1, 4), tf.int64))

        def call(self, ids, training=False):
            x = self.words(ids) + self.places(tf.range(tf.shape(ids)[1]))
            return self.head(tf.reduce_max(self.norm(x), axis=1))

    return Tagger(), IDS, TARGETS


@model
def two_inputs() -> Any:
    a, b = keras.Input((8,), name="a"), keras.Input((4,), name="b")
    y = L.Dense(3)(L.Concatenate()([L.Dense(5)(a), L.Dense(5)(b)]))
    return keras.Model({"a": a, "b": b}, y), {"a": series(4, 8), "b": series(4, 4)}, TARGETS


RUNS = [(name, policy) for name in MODELS for policy in ("float32", "mixed_bfloat16", "mixed_float16")]
RUNS += [(name, policy) for name in ("lstm", "attention") for policy in ("bf16-true", "float64")]


@pytest.mark.parametrize(("name", "policy"), RUNS)
def test_nothing_is_said_of_a_clean_model(name: str, policy: str) -> None:
    built, batch, targets = MODELS[name]()
    if policy == "float64":
        batch = tf.nest.map_structure(lambda a: a.astype("float64") if a.dtype == np.float32 else a, batch)
    logits = name != "dense_with_softmax_and_dropout"

    def loss(targets, outputs):
        return keras.losses.sparse_categorical_crossentropy(targets, outputs, from_logits=logits)

    before = [v.numpy().tobytes() for v in built.variables]
    report = audit(built, batch, policy, targets=targets, loss=loss)
    assert report.traced == "graph"
    assert [f"{f.code} {f}" for f in report.findings if f.severity != "info"] == []
    assert report.operations > 3
    assert [v.numpy().tobytes() for v in built.variables] == before
    assert {v.dtype for v in built.trainable_variables} == {"float32"}


def test_an_audit_leaves_the_model_as_it_was() -> None:
    model, batch, targets = MODELS["attention"]()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(batch, targets, verbose=0)
    function, values = model.train_function, [v._value for v in model.variables]
    policies = [layer.dtype_policy for layer in model._flatten_layers()]
    audit(model, batch, "bf16-true", targets=targets)
    assert model.train_function is function
    assert all(v._value is value for v, value in zip(model.variables, values, strict=True))
    assert [layer.dtype_policy for layer in model._flatten_layers()] == policies
    assert not any("call" in layer.__dict__ for layer in model._flatten_layers())
    model.fit(batch, targets, verbose=0)
