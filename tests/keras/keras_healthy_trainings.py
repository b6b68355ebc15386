"""Trainings in Keras in which infinities or NaN arise and are meant to, or where nothing comes of them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras_case_kit import INF, UNCOMPILED, L, Training, features, healthy, linear, wide

ALL = ("float32", "bf16-mixed")


def sequences(rows: int = 3, width: int = 4) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, 5, width)).astype("float32")


class Attending(keras.Model):
    """Keras's own attention under a padding mask."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = L.MultiHeadAttention(1, 4, name="attention")

    def call(self, inputs: Any) -> Any:
        x = inputs["x"]
        return self.attention(x, x, attention_mask=inputs["there"][:, None, :])


@healthy(*ALL)
def attention_with_a_row_masked_whole() -> Training:
    """Keras masks with a large finite number."""
    model = Attending()
    there = np.ones((3, 5), bool)
    there[1] = False
    batch = {"x": sequences(), "there": there}
    model(batch)
    return Training(
        model=model, batches=[batch] * 2, loss_of=lambda b: tf.reduce_mean(tf.square(wide(model(b))))
    )


@healthy(*ALL)
def scores_masked_by_hand() -> Training:
    """`where(mask, scores, -inf)` before a softmax that has something left; check_numerics raises here."""
    model = linear(4)

    def loss_of(batch: Any) -> Any:
        q = wide(model(batch["x"]))
        scores = tf.where(batch["there"][None], tf.matmul(q, q, transpose_b=True), -INF)
        return tf.reduce_mean(tf.square(tf.matmul(tf.nn.softmax(scores), q)))

    there = np.ones(8, bool)
    there[5:] = False
    return Training(model=model, batches=[{"x": features(), "there": there}] * 2, loss_of=loss_of)


@healthy(*ALL)
def log_probabilities_masked_later() -> Training:
    model = linear(3)

    def loss_of(batch: Any) -> Any:
        scores = tf.where(batch["never"], -INF, wide(model(batch["x"])))
        logs = tf.nn.log_softmax(scores)
        return -tf.reduce_mean(tf.where(batch["never"], 0.0, logs))

    never = np.zeros((8, 3), bool)
    never[:, 1] = True
    return Training(model=model, batches=[{"x": features(), "never": never}] * 2, loss_of=loss_of)


@healthy(*ALL)
def the_logarithm_of_a_feature_that_may_be_zero() -> Training:
    """`where(x > 0, log(x), 0)` of data, which have no gradient; check_numerics raises here."""
    model = linear(1)

    def loss_of(batch: Any) -> Any:
        x = batch["x"]
        return tf.reduce_mean(tf.square(wide(model(tf.where(x > 0, tf.math.log(x), 0.0)))))

    return Training(model=model, batches=[{"x": np.maximum(features(), 0)}] * 2, loss_of=loss_of)


@healthy(*ALL)
def functions_that_are_safe_at_zero() -> Training:
    """`l2_normalize`, `divide_no_nan`, `xlogy` and `multiply_no_nan` have values and gradients there."""
    model = linear(4, use_bias=False)

    def loss_of(batch: Any) -> Any:
        h = wide(model(batch["x"]))
        return (
            tf.reduce_sum(tf.math.l2_normalize(h))
            + tf.reduce_sum(tf.math.divide_no_nan(h, tf.reduce_sum(h)))
            + tf.reduce_sum(tf.math.multiply_no_nan(h, h * 0))
            + tf.reduce_sum(tf.math.xlogy(tf.stop_gradient(h) * 0, tf.stop_gradient(h)))
        )

    return Training(model=model, batches=[{"x": np.zeros((8, 4), "float32")}] * 2, loss_of=loss_of)


@healthy(modes=UNCOMPILED)
def a_root_of_zero_whose_slope_nobody_wants() -> Training:
    """TensorFlow's own kernel says that 0 times the infinite slope of sqrt is 0; only XLA says NaN."""
    model = linear(1, use_bias=False)
    x = features()
    x[7] = 0

    def loss_of(batch: Any) -> Any:
        h = tf.square(model(batch["x"]))
        return tf.reduce_sum(tf.where(h > 0, tf.sqrt(h), 0.0))

    return Training(model=model, batches=[{"x": x}] * 2, loss_of=loss_of)


@healthy(*ALL)
def padding_left_out_of_the_loss() -> Training:
    model = keras.Sequential([keras.Input((6, 4)), L.Masking(), L.LSTM(4, return_sequences=True)])
    x = np.random.default_rng(0).normal(size=(3, 6, 4)).astype("float32")
    x[1, 2:] = 0
    x[2] = 0  # nothing but padding

    def loss_of(batch: Any) -> Any:
        there = tf.cast(tf.reduce_any(batch["x"] != 0, -1), tf.float32)
        states = tf.reduce_mean(tf.square(wide(model(batch["x"]))), -1)
        return tf.reduce_sum(states * there) / tf.reduce_sum(there)

    return Training(model=model, batches=[{"x": x}] * 2, loss_of=loss_of)


class Causal(keras.Model):
    """Attention with a causal mask of -inf that is kept as a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.project = L.Dense(4)

    def build(self, shape: Any) -> None:
        mask = np.triu(np.full((5, 5), -np.inf, "float32"), 1)
        self.mask = self.add_weight(
            shape=(5, 5), initializer=lambda *_, **__: tf.constant(mask), trainable=False, name="mask"
        )
        super().build(shape)

    def call(self, x: Any) -> Any:
        q = self.project(x)
        return tf.matmul(tf.nn.softmax(tf.matmul(q, q, transpose_b=True) + self.mask), q)


@healthy()
def a_causal_mask_kept_as_a_buffer() -> Training:
    model = Causal()
    model(sequences())
    return Training(
        model=model, batches=[{"x": sequences()}] * 2, loss_of=lambda b: tf.reduce_mean(model(b["x"]) ** 2)
    )


class Partly(keras.Model):
    """A layer that is frozen, one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.frozen = L.Dense(1), L.Dense(1), L.Dense(4, trainable=False)
        self.unused.build((None, 4))

    def call(self, x: Any) -> Any:
        return self.used(self.frozen(x))


@healthy()
def an_unused_and_a_frozen_layer() -> Training:
    model = Partly()
    model(features())
    return Training(
        model=model,
        batches=[{"x": features()}] * 2,
        loss_of=lambda b: tf.reduce_mean(tf.square(model(b["x"]))),
        optimizer=keras.optimizers.Adam(),
    )


@healthy()
def integers_among_the_weights_and_the_batch() -> Training:
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="int64"),
            L.Embedding(10, 4),
            L.Flatten(),
            L.Dense(4),
            L.Dropout(0.1),
            L.BatchNormalization(),
        ]
    )
    ids = np.random.default_rng(0).integers(0, 10, (8, 3))
    return Training(
        model=model,
        batches=[{"x": ids}] * 2,
        loss_of=lambda b: tf.reduce_mean(tf.square(model(b["x"], training=True))),
    )


@healthy("fp16-mixed")
def gradients_overflow_while_the_loss_scale_calibrates() -> Training:
    model = linear(1)
    return Training(
        model=model,
        batches=[{"x": features()}] * 30,
        loss_of=lambda b: tf.reduce_mean(wide(model(b["x"])) * 3000),
    )


@healthy()
def an_infinity_that_where_takes_out_again() -> Training:
    """The divisor is made safe before the division, as one should."""
    model = linear(3)

    def loss_of(batch: Any) -> Any:
        h = tf.nn.relu(model(batch["x"]))
        safe = tf.where(h > 0, h, 1.0)
        return tf.reduce_sum(tf.where(h > 0, tf.math.log(safe), 0.0))

    return Training(model=model, batches=[{"x": features()}] * 2, loss_of=loss_of)


@healthy(*ALL)
def a_transformer_with_a_sequence_that_is_all_padding() -> Training:
    ids = keras.Input((5,), dtype="int64")
    x = L.Embedding(10, 8, mask_zero=True)(ids)
    x = L.LayerNormalization()(x + L.MultiHeadAttention(2, 4)(x, x))
    x = L.LayerNormalization()(x + L.Dense(8)(L.Dense(16, activation="gelu")(x)))
    model = keras.Model(ids, L.Dense(1)(L.GlobalAveragePooling1D()(x)))
    batch = {"x": np.array([[1, 2, 3, 4, 5], [0, 0, 0, 0, 0], [6, 7, 0, 0, 0]])}

    def loss_of(batch: Any) -> Any:
        there = tf.reduce_any(batch["x"] != 0, 1)
        out = tf.where(there[:, None], wide(model(batch["x"], training=True)), 0.0)
        return tf.reduce_mean(tf.square(out))

    return Training(model=model, batches=[batch] * 2, loss_of=loss_of)


@healthy("fp16-true")
def zero_gradients_and_adam_on_float16_parameters() -> Training:
    """Adam's eps is 0 in float16, and 0/0 NaN; here the optimizer computes in float32."""
    model = linear(3, use_bias=False)

    def loss_of(batch: Any) -> Any:
        return tf.reduce_sum(wide(model(batch["x"])) * tf.constant([0.0, 1e-4, 1e-2]))

    return Training(
        model=model,
        batches=[{"x": features()}] * 2,
        loss_of=loss_of,
        optimizer=keras.optimizers.Adam(),
        precision={"loss": "float32", "scaling": {"kind": "static", "scale": 1.0}},
    )
