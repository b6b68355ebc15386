"""Broken trainings in Keras by layers: a few lines that somebody might have written."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras_case_kit import INF, NAN, L, Training, broken, features, linear, wide

# --- layers ------------------------------------------------------------------------------------------------


class Standardised(keras.Model):
    """Standardises a batch by its own mean and deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = L.Dense(1, name="linear")

    def call(self, x: Any) -> Any:
        x = (x - tf.reduce_mean(x, 0)) / tf.math.reduce_std(x, 0)
        return self.linear(x)


@broken(
    "Standardising by hand, with a constant column", row=10,
    code="N502", phase="forward", event="zero-over-zero", op="RealDiv", module="", line="reduce_std(x, 0)",
)  # fmt: skip
def constant_column() -> Training:
    model = Standardised()
    x = features()
    x[:, 2] = 7.0
    model(x)
    return Training(
        model=model, batches=[{"x": x}], loss_of=lambda b: tf.reduce_mean(tf.square(model(b["x"])))
    )


@broken(
    "A matrix product beyond float16",
    row=12, policies=("fp16-true", "fp16-mixed"),
    code="N501", phase="forward", event="overflow", op=("MatMul", "_FusedMatMul"), module="second", rows=[5],
    says="compute: float32",
)  # fmt: skip
def product_overflows() -> Training:
    model = keras.Sequential(
        [
            keras.Input((4,)),
            L.Dense(4, use_bias=False, kernel_initializer=keras.initializers.Constant(100.0), name="first"),
            L.Dense(2, use_bias=False, kernel_initializer=keras.initializers.Constant(10.0), name="second"),
        ]
    )
    x = np.clip(features(), -2, 2)
    x[5] = 100.0
    return Training(
        model=model,
        batches=[{"x": x}],
        loss_of=lambda b: tf.reduce_mean(wide(model(b["x"]))) * 1e-4,
        precision={"loss": "float32", "scaling": {"kind": "static", "scale": 1.0}},
    )


class Normed(keras.Model):
    """exp in front of a BatchNormalization."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.head = L.Dense(4), L.BatchNormalization(), L.Dense(1)

    def call(self, x: Any, training: bool = False) -> Any:
        return self.head(self.norm(tf.exp(self.linear(x)), training=training))


@broken(
    "An infinite activation reaches BatchNorm", row=21,
    code="N501", phase="forward", event="overflow", op="Exp", module="", line="tf.exp(", rows=[3],
)  # fmt: skip
def batch_norm_poisoned() -> Training:
    model = Normed()
    x = features()
    model(x)
    bad = features()
    bad[3] = 1e4
    return Training(
        model=model,
        batches=[{"x": x}, {"x": bad}],
        loss_of=lambda b: tf.reduce_mean(tf.square(model(b["x"], training=True))),
    )


@broken(
    "A recurrent state that grows without bound",
    code="N501", phase="forward", event="overflow", module="rnn.cell", time_index=4,
)  # fmt: skip
def recurrent_layer_growth() -> Training:
    model = keras.Sequential(
        [
            keras.Input((9, 4)),
            L.SimpleRNN(
                4,
                activation="relu",
                kernel_initializer="ones",
                recurrent_initializer=keras.initializers.Constant(1e9),
                name="rnn",
            ),
            L.Dense(1),
        ]
    )
    x = np.random.default_rng(0).uniform(0.5, 1.5, (6, 9, 4)).astype("float32")
    return Training(
        model=model, batches=[{"x": x}], loss_of=lambda b: tf.reduce_mean(tf.square(model(b["x"])))
    )


class Scale(L.Layer):
    """Subtracts the logarithm of a learned variance."""

    def build(self, shape: Any) -> None:
        self.variance = self.add_weight(shape=(4,), initializer="ones", name="variance")

    def call(self, x: Any) -> Any:
        return x - tf.math.log(self.variance)


@broken(
    "A variance layer that learns its way below zero",
    code="N504", phase="forward", event="domain", op="Log", module="scale", line="tf.math.log",
)  # fmt: skip
def negative_variance() -> Training:
    model = keras.Sequential([keras.Input((4,)), L.Dense(4), Scale(name="scale")])
    model.get_layer("scale").variance.assign([1.0, -0.5, 1.0, 1.0])
    return Training(
        model=model, batches=[{"x": features()}], loss_of=lambda b: tf.reduce_mean(tf.square(model(b["x"])))
    )


@broken(
    "An angle from a cosine that rounding pushed past 1",
    code="N504", phase="loss", event="domain", op="Acos", line="tf.acos", rows=[2], says="(-1, 1)",
)  # fmt: skip
def angle_past_one() -> Training:
    model = linear(1, use_bias=False, kernel_initializer=keras.initializers.Constant(1.00001))
    x = np.full((8, 4), 0.1, "float32")
    x[2] = [1.0, 0.0, 0.0, 0.0]
    return Training(model=model, batches=[{"x": x}], loss_of=lambda b: tf.reduce_sum(tf.acos(model(b["x"]))))


# --- more of each kind -------------------------------------------------------------------------------------


class Pooled(keras.Model):
    """An LSTM whose states are pooled over the positions that are there."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.lstm = L.LSTM(5, return_sequences=True, name="lstm")
        self.head = L.Dense(2, name="head")
        self.how = how

    def call(self, inputs: Any) -> Any:
        there = (tf.range(7)[None] < inputs["length"][:, None])[..., None]
        states = self.lstm(inputs["x"])
        if self.how == "mean":
            count = tf.reduce_sum(tf.cast(there, states.dtype), 1)
            return self.head(tf.reduce_sum(tf.where(there, states, 0.0), 1) / count)
        return self.head(tf.reduce_max(tf.where(there, states, -INF), 1))


def sequences(how: str) -> Training:
    model = Pooled(how)
    batch = {
        "x": np.random.default_rng(0).normal(size=(6, 7, 4)).astype("float32"),
        "length": np.array([7, 3, 5, 0, 6, 4], "int32"),
        "y": np.zeros(6, "int64"),
    }
    model(batch)

    def loss_of(batch: Any) -> Any:
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(batch["y"], model(batch)))

    return Training(model=model, batches=[batch], loss_of=loss_of)


@broken(
    "The mean over an empty sequence",
    code="N502", phase="forward", event="zero-over-zero", op="RealDiv", module="", line="/ count", rows=[3],
)  # fmt: skip
def mean_of_an_empty_sequence() -> Training:
    return sequences("mean")


@broken(
    "The maximum over an empty sequence",
    code="N503", phase="forward", event="zero-times-inf", op="MatMul", module="head", rows=[3],
)  # fmt: skip
def maximum_of_an_empty_sequence() -> Training:
    return sequences("max")


@broken(
    "A gradient penalty where the gradient is 0",
    code="N504", phase="backward", event="domain", op="SqrtGrad", line="tf.sqrt",
)  # fmt: skip
def gradient_penalty() -> Training:
    model = keras.Sequential(
        [
            keras.Input((4,)),
            L.Dense(8, activation="relu", bias_initializer=keras.initializers.Constant(-9.0)),
            L.Dense(1),
        ]
    )

    def loss_of(batch: Any) -> Any:
        x = tf.identity(batch["x"])
        with tf.GradientTape() as tape:
            tape.watch(x)
            out = tf.reduce_sum(model(x))
        slope = tape.gradient(out, x)
        return tf.reduce_mean(tf.square(tf.sqrt(tf.reduce_sum(tf.square(slope), 1)) - 1))

    return Training(model=model, batches=[{"x": features()}], loss_of=loss_of)


@broken(
    "A NaN that is written in the code",
    code="N506", phase="forward", event="inherited", op="Fill", line="tf.fill", says="a constant that is NaN",
)  # fmt: skip
def a_nan_in_the_code() -> Training:
    model = linear(1)

    def loss_of(batch: Any) -> Any:
        weights = tf.fill([8], NAN)
        return tf.reduce_mean(tf.square(model(batch["x"])[:, 0]) * weights)

    return Training(model=model, batches=[{"x": features()}], loss_of=loss_of)


@broken(
    "An image of another scale, in front of a BatchNorm",
    row=21,
    code="N501", phase="forward", event="overflow", module="norm", rows=[2],
)  # fmt: skip
def image_of_another_scale() -> Training:
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            L.Conv2D(4, 3),
            L.BatchNormalization(name="norm"),
            L.ReLU(),
            L.GlobalAveragePooling2D(),
            L.Dense(2),
        ]
    )
    images = np.random.default_rng(0).normal(size=(5, 8, 8, 3)).astype("float32")
    images[2] *= 1e30
    batch = {"x": images, "y": np.zeros(5, "int64")}

    def loss_of(batch: Any) -> Any:
        logits = model(batch["x"], training=True)
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(batch["y"], logits))

    return Training(model=model, batches=[batch], loss_of=loss_of)
