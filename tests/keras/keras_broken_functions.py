"""Broken trainings in Keras by loss functions, slopes and attention. Each is a few lines of somebody's."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras_case_kit import COMPILED, INF, UNCOMPILED, L, Training, broken, features, linear, ones, wide

# --- loss functions ----------------------------------------------------------------------------------------


@broken(
    "Cross-entropy by hand, a probability of 0 whose target is 0",
    row=1, policies=("float32", "bf16-mixed"),
    code="N504", phase="loss", event="domain", op="Log", line="tf.math.log(p)", rows=[5], says="log_softmax",
)  # fmt: skip
def cross_entropy_by_hand() -> Training:
    model = linear(3)
    keep = ones(8, 3)
    keep[5, 1] = 0

    def loss_of(batch: Any) -> Any:
        p = tf.nn.softmax(wide(model(batch["x"]))) * batch["keep"]
        return -tf.reduce_mean(tf.reduce_sum(batch["y"] * tf.math.log(p), -1))

    return Training(model=model, batches=[{"x": features(), "keep": keep, "y": keep.copy()}], loss_of=loss_of)


@broken(
    "The same with a target of 1", row=2,
    code="N504", phase="loss", event="domain", op="Log", line="tf.math.log(p)", rows=[2],
)  # fmt: skip
def cross_entropy_by_hand_infinite() -> Training:
    model = linear(3)
    keep = ones(8, 3)
    keep[2, 0] = 0

    def loss_of(batch: Any) -> Any:
        p = tf.nn.softmax(model(batch["x"])) * batch["keep"]
        return -tf.reduce_mean(tf.reduce_sum(tf.math.log(p), -1))

    return Training(model=model, batches=[{"x": features(), "keep": keep}], loss_of=loss_of)


@broken(
    "KL divergence with a probability of 0 on the model's side",
    code="N504", phase="loss", event="domain", op="RealDiv", line="t / p", rows=[3],
)  # fmt: skip
def divergence_by_hand() -> Training:
    model = linear(3)
    keep = ones(8, 3)
    keep[3, 2] = 0

    def loss_of(batch: Any) -> Any:
        p = tf.nn.softmax(model(batch["x"])) * batch["keep"]
        t = batch["t"]
        return tf.reduce_mean(tf.reduce_sum(t * tf.math.log(t / p), -1))

    batch = {"x": features(), "keep": keep, "t": np.full((8, 3), 1 / 3, "float32")}
    return Training(model=model, batches=[batch], loss_of=loss_of)


@broken(
    "Every label is ignored",
    row=11, policies=("float32", "bf16-mixed"),
    code="N511", phase="loss", event="zero-over-zero", op="RealDiv", line="tf.reduce_sum(there)",
    says="the weights were never in danger",
)  # fmt: skip
def all_labels_ignored() -> Training:
    model = linear(3)

    def loss_of(batch: Any) -> Any:
        there = tf.cast(batch["y"] >= 0, tf.float32)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            tf.maximum(batch["y"], 0), wide(model(batch["x"]))
        )
        return tf.reduce_sum(tf.stop_gradient(losses * there)) / tf.reduce_sum(there) + 0 * tf.reduce_sum(
            losses
        )

    batch = {"x": features(), "y": np.full(8, -100)}
    return Training(model=model, batches=[batch], loss_of=loss_of)


@broken(
    "A masked mean with an empty mask", row=11, modes=UNCOMPILED,
    code="N511", phase="loss", event="zero-over-zero", op="Mean", line="tf.boolean_mask",
    says="mask is empty",
)  # fmt: skip
def empty_mask() -> Training:
    model = linear(1)

    def loss_of(batch: Any) -> Any:
        error = tf.square(model(batch["x"])[:, 0] - batch["y"])
        return tf.reduce_mean(tf.boolean_mask(error, batch["mask"]))

    batch = {"x": features(), "y": np.zeros(8, "float32"), "mask": np.zeros(8, bool)}
    return Training(model=model, batches=[batch], loss_of=loss_of)


@broken(
    "A squared error beyond float32",
    code="N501", phase="loss", event="overflow", op=("SquaredDifference", "Square"),
    line="squared_difference", rows=[6],
)  # fmt: skip
def squared_error_overflows() -> Training:
    model = linear(1)
    y = np.zeros((8, 1), "float32")
    y[6] = 1e20

    def loss_of(batch: Any) -> Any:
        return tf.reduce_mean(tf.math.squared_difference(model(batch["x"]), batch["y"]))

    return Training(model=model, batches=[{"x": features(), "y": y}], loss_of=loss_of)


@broken(
    "Poisson likelihood on large counts",
    code="N501", phase="loss", event="overflow", op="Exp", line="log_poisson_loss", rows=[1],
    says="clip the argument",
)  # fmt: skip
def poisson_overflows() -> Training:
    model = linear(1, kernel_initializer="ones")
    x = features()
    x[1] = 1000.0
    return Training(
        model=model,
        batches=[{"x": x, "y": ones(8, 1)}],
        loss_of=lambda b: tf.reduce_mean(tf.nn.log_poisson_loss(b["y"], model(b["x"]))),
    )


# --- backward alone ----------------------------------------------------------------------------------------


@broken(
    "sqrt of 0, times 0", row=3, modes=COMPILED,
    code="N502", phase="backward", event="zero-over-zero", op="SqrtGrad", line="tf.sqrt",
)  # fmt: skip
def root_of_zero_times_zero() -> Training:
    model = linear(3)

    def loss_of(batch: Any) -> Any:
        root = tf.sqrt(model(batch["x"]) * 0)
        return tf.reduce_sum(root * 0)

    return Training(model=model, batches=[{"x": features()}], loss_of=loss_of)


@broken(
    "sqrt of 0", row=4,
    code="N504", phase="backward", event="domain", op="SqrtGrad", line="tf.sqrt", rows=[4],
)  # fmt: skip
def root_of_zero() -> Training:
    model = linear(1, use_bias=False)
    x = features()
    x[4] = 0

    def loss_of(batch: Any) -> Any:
        return tf.reduce_sum(tf.sqrt(tf.square(model(batch["x"]))))

    return Training(model=model, batches=[{"x": x}], loss_of=loss_of)


@broken(
    "where(x > 0, sqrt(x), 0)",
    row=8, modes=COMPILED,
    code="N502", phase="backward", event="zero-over-zero", op="SqrtGrad", line="tf.sqrt(h)",
)  # fmt: skip
def where_trap() -> Training:
    model = linear(1, use_bias=False)
    x = features()
    x[7] = 0

    def loss_of(batch: Any) -> Any:
        h = tf.square(wide(model(batch["x"])))
        return tf.reduce_sum(tf.where(h > 0, tf.sqrt(h), 0.0))

    return Training(model=model, batches=[{"x": x}], loss_of=loss_of)


@broken(
    "where(x > 0, log(x), 0)", row=8,
    code="N504", phase="loss", event="domain", op="Log", line="tf.math.log(h)",
)  # fmt: skip
def where_trap_log() -> Training:
    model = linear(1, use_bias=False)
    x = features()
    x[0] = 0

    def loss_of(batch: Any) -> Any:
        h = tf.square(model(batch["x"]))
        return tf.reduce_sum(tf.where(h > 0, tf.math.log(h), 0.0))

    return Training(model=model, batches=[{"x": x}], loss_of=loss_of)


@broken(
    "tf.norm at 0", row=9,
    code="N504", phase="backward", event="domain", op="SqrtGrad", line="tf.norm",
)  # fmt: skip
def norm_at_zero() -> Training:
    model = linear(3, use_bias=False)

    def loss_of(batch: Any) -> Any:
        return tf.norm(model(batch["x"]))

    return Training(model=model, batches=[{"x": np.zeros((8, 4), "float32")}], loss_of=loss_of)


@broken(
    "reduce_std of a constant", row=9,
    code="N504", phase="backward", event="domain", op="SqrtGrad", line="reduce_std",
)  # fmt: skip
def deviation_of_a_constant() -> Training:
    model = linear(3, kernel_initializer="ones")

    def loss_of(batch: Any) -> Any:
        return tf.reduce_sum(tf.math.reduce_std(model(batch["x"]), axis=0))

    return Training(model=model, batches=[{"x": ones(8, 4)}], loss_of=loss_of)


@broken(
    "A norm by hand at 0", row=9,
    code="N504", phase="backward", event="domain", op="SqrtGrad", line="tf.reduce_sum(tf.square",
)  # fmt: skip
def norm_by_hand() -> Training:
    model = linear(3, use_bias=False)

    def loss_of(batch: Any) -> Any:
        return tf.sqrt(tf.reduce_sum(tf.square(model(batch["x"]))))

    return Training(model=model, batches=[{"x": np.zeros((8, 4), "float32")}], loss_of=loss_of)


@broken(
    "A power below 1 at 0",
    code="N503", phase="backward", event="zero-times-inf", op="PowGrad", line="** 0.5",
)  # fmt: skip
def fractional_power() -> Training:
    model = linear(3, use_bias=False)

    def loss_of(batch: Any) -> Any:
        return tf.reduce_sum((tf.abs(model(batch["x"])) ** 0.5) * 0)

    return Training(model=model, batches=[{"x": np.zeros((8, 4), "float32")}], loss_of=loss_of)


@tf.custom_gradient
def scaled_back(x: Any, scale: Any) -> Any:
    """A gradient that divides by what may be 0."""

    def gradient(upstream: Any) -> Any:
        return upstream / scale, None

    return tf.identity(x), gradient


@broken(
    "A custom gradient is infinite, and Adam would keep it for good",
    row=18, policies=("float32", "bf16-mixed"),
    code="N504", phase="backward", event="domain", line="upstream / scale", rows=[3],
)  # fmt: skip
def custom_backward() -> Training:
    model = linear(3)
    scale = ones(8, 1)
    scale[3] = 0

    def loss_of(batch: Any) -> Any:
        return tf.reduce_sum(scaled_back(wide(model(batch["x"])), batch["scale"]))

    good = {"x": features(), "scale": ones(8, 1)}
    return Training(
        model=model,
        batches=[good, {"x": features(), "scale": scale}],
        loss_of=loss_of,
        optimizer=keras.optimizers.Adam(),
    )


# --- attention and softmax ---------------------------------------------------------------------------------


class Attention(keras.Model):
    """Attention by hand, masked with -inf."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.out = (L.Dense(4, name=n) for n in ("query", "key", "out"))

    def call(self, inputs: Any) -> Any:
        x, mask = inputs["x"], inputs["mask"]
        scores = tf.matmul(self.query(x), self.key(x), transpose_b=True)
        scores = tf.where(mask[:, None, :], tf.constant(-INF, scores.dtype), scores)
        weights = tf.nn.softmax(scores)
        return self.out(tf.matmul(weights, tf.cast(x, weights.dtype)))


@broken(
    "A row of attention masked whole, whose output is not in the loss",
    row=5, policies=("float32", "bf16-mixed"),
    code="N502", phase="forward", event="zero-over-zero", op="Softmax", module="", rows=[2],
    line="tf.nn.softmax(scores)", says="masked whole",
)  # fmt: skip
def masked_attention_by_hand() -> Training:
    model = Attention()
    mask = np.zeros((4, 5), bool)
    mask[2] = True
    x = np.random.default_rng(1).normal(size=(4, 5, 4)).astype("float32")
    model({"x": x, "mask": mask})

    def loss_of(batch: Any) -> Any:
        out = wide(model(batch))
        return tf.reduce_sum(tf.square(out[:2])) + tf.reduce_sum(tf.square(out[3:]))

    return Training(model=model, batches=[{"x": x, "mask": mask}], loss_of=loss_of)


class Masked(keras.Model):
    """Two additive masks of the most negative number."""

    def __init__(self) -> None:
        super().__init__()
        self.project = L.Dense(4, name="project")

    def call(self, inputs: Any) -> Any:
        h = self.project(inputs["x"])
        padding = tf.cast(inputs["padding"], h.dtype) * h.dtype.min
        mask = padding[:, None, :] + padding[:, :, None]
        return tf.matmul(tf.nn.softmax(tf.matmul(h, h, transpose_b=True) + mask), h)


@broken(
    "Two masks of the most negative number are added, in 16 bits",
    row=7, policies=("bf16-true", "fp16-true"),
    code="N501", phase="forward", event="overflow", op="AddV2", module="", line="mask = padding", rows=[1],
)  # fmt: skip
def masks_overflow() -> Training:
    model = Masked()
    padding = np.zeros((3, 5), "float32")
    padding[1] = 1
    batch = {"x": np.random.default_rng(1).normal(size=(3, 5, 4)).astype("float32"), "padding": padding}
    model(batch)
    return Training(
        model=model,
        batches=[batch],
        loss_of=lambda b: tf.reduce_sum(wide(model(b))),
        precision={"loss": "float32", "islands": {"softmax": None}},
    )


class HandSoftmax(keras.Model):
    """exp over its sum."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = L.Dense(3, kernel_initializer=keras.initializers.Constant(0.1), name="linear")

    def call(self, x: Any) -> Any:
        h = self.linear(x)
        e = tf.exp(h)
        return e / tf.reduce_sum(e, -1, keepdims=True)


@broken(
    "A softmax by hand",
    row=13, policies=("float32", "bf16-mixed", "fp16-mixed"),
    code="N501", phase="forward", event="overflow", op="Exp", module="", line="tf.exp(h)", rows=[4],
)  # fmt: skip
def softmax_by_hand() -> Training:
    model = HandSoftmax()
    model(features())
    x = features()
    x[4] = 3000.0
    return Training(
        model=model,
        batches=[{"x": features()}, {"x": x}],
        loss_of=lambda b: tf.reduce_sum(wide(model(b["x"]))[:, 0]),
    )
