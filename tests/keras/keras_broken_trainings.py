"""Broken trainings in Keras. Each is a few lines that somebody might have written."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras_case_kit import Training, broken

L = keras.layers
INF, NAN = float("inf"), float("nan")
COMPILED = ("jit",)
UNCOMPILED = ("graph", "eager")


def features(rows: int = 8, width: int = 4) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, width)).astype("float32")


def linear(units: int, width: int = 4, **options: Any) -> Any:
    return keras.Sequential([keras.Input((width,)), L.Dense(units, name="linear", **options)])


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, "float32")


def wide(x: Any) -> Any:
    return tf.cast(x, tf.float32)


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
