"""Broken trainings in Keras by data, optimizers and steps: a few lines that somebody might have written."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras_case_kit import INF, NAN, L, Training, broken, features, linear, ones, wide

# --- what was there before ---------------------------------------------------------------------------------


@broken(
    "One row of the batch is NaN, behind a BatchNorm",
    row=22, policies=("float32", "bf16-mixed"),
    code="N507", phase="data", event="data", parameter="x", rows=[6],
)  # fmt: skip
def bad_row() -> Training:
    model = keras.Sequential(
        [keras.Input((4,)), L.Dense(4), L.BatchNormalization(), L.ReLU(), L.Dense(3, dtype="float32")]
    )
    x = features()
    x[6, 2] = NAN
    batch = {"x": x, "y": np.zeros(8, "int64"), "row": np.arange(8)}

    def loss_of(batch: Any) -> Any:
        logits = wide(model(batch["x"], training=True))
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(batch["y"], logits))

    return Training(model=model, batches=[batch], loss_of=loss_of)


@broken(
    "Two rows of a sequence are infinite, in an LSTM", row=22,
    code="N507", phase="data", event="data", parameter="x", rows=[1, 4],
)  # fmt: skip
def bad_sequences() -> Training:
    model = keras.Sequential([keras.Input((5, 4)), L.LSTM(4)])
    x = np.random.default_rng(0).normal(size=(6, 5, 4)).astype("float32")
    x[1, 3, 0], x[4, 0, 2] = INF, NAN
    return Training(
        model=model, batches=[{"x": x}], loss_of=lambda b: tf.reduce_mean(tf.square(model(b["x"])))
    )


@broken(
    "A row of an embedding is not finite",
    policies=("float32", "bf16-mixed"),
    code="N506", phase="forward", event="inherited", parameter="table.embeddings", rows=[3],
    says="in row 7 of 10",
)  # fmt: skip
def embedding_row() -> Training:
    model = keras.Sequential(
        [keras.Input((3,), dtype="int64"), L.Embedding(10, 4, name="table"), L.Flatten(), L.Dense(1)]
    )
    table = np.random.default_rng(0).normal(size=(10, 4)).astype("float32")
    table[7, 1] = INF
    model.get_layer("table").embeddings.assign(table)
    good = np.random.default_rng(0).integers(0, 7, (5, 3))
    bad = good.copy()
    bad[3, 2] = 7
    return Training(
        model=model,
        batches=[{"x": good}, {"x": bad}],
        loss_of=lambda b: tf.reduce_mean(tf.square(wide(model(b["x"])))),
    )


@broken(
    "A mask's fill value in the data is taken for a number",
    code="N507", phase="data", event="data", parameter="x", rows=[0],
)  # fmt: skip
def minus_infinity_in_the_data() -> Training:
    model = keras.Sequential([keras.Input((4,)), L.Dense(4), L.LayerNormalization(), L.Dense(1)])
    x = features()
    x[0, 0] = -INF
    return Training(
        model=model, batches=[{"x": x}], loss_of=lambda b: tf.reduce_mean(tf.square(model(b["x"])))
    )


# --- optimizers and steps ----------------------------------------------------------------------------------


@broken(
    "A squared gradient beyond float32",
    code="N508", phase="optimizer", event="optimizer", op="Adam", says="of gradients that are",
)  # fmt: skip
def second_moment_overflows() -> Training:
    model = linear(1, use_bias=False)
    return Training(
        model=model,
        batches=[{"x": np.full((8, 4), 1e25, "float32")}],
        loss_of=lambda b: tf.reduce_sum(model(b["x"])),
        optimizer=keras.optimizers.Adam(),
        guard={"watch": ["loss", "gradients", "buffers", "parameters", "optimizer"]},
    )


@broken(
    "One micro-batch of four is bad", row=26,
    code="N507", phase="data", event="data", parameter="x", rows=[5], micro_batch=1,
)  # fmt: skip
def micro_batch() -> Training:
    model = linear(1)
    bad = features()
    bad[5] = NAN
    step = ({"x": features()}, {"x": bad}, {"x": features()}, {"x": features()})
    return Training(model=model, batches=[step], loss_of=lambda b: tf.reduce_mean(tf.square(model(b["x"]))))


class Rooted(keras.Model):
    """The root of a magnitude that may be 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = L.Dense(4), L.Dense(1, use_bias=False)

    def call(self, inputs: Any) -> Any:
        return tf.sqrt(tf.square(self.second(self.first(inputs["x"])) * inputs["keep"]))


@broken(
    "A gradient is infinite and the norm clips it", row=20,
    code="N504", phase="backward", event="domain", op="SqrtGrad", module="", line="tf.sqrt(", rows=[2],
)  # fmt: skip
def infinite_gradient_before_clipping() -> Training:
    model = Rooted()
    keep = ones(8, 1)
    keep[2] = 0
    batch = {"x": features(), "keep": keep}
    model(batch)
    return Training(model=model, batches=[batch], loss_of=lambda b: tf.reduce_sum(model(b)), clip_norm=1.0)


# --- what does not come back -------------------------------------------------------------------------------


@broken(
    "A fault that does not come back", row=33,
    code="N509", phase="forward", event="not-reproduced", says="the device",
)  # fmt: skip
def does_not_come_back() -> Training:
    model = linear(1)
    runs = tf.Variable(0)

    def loss_of(batch: Any) -> Any:
        fault = tf.where(runs.assign_add(1) == 2, NAN, 1.0)
        return tf.reduce_mean(tf.square(model(batch["x"]))) * fault

    return Training(model=model, batches=[{"x": features()}, {"x": features()}], loss_of=loss_of)
