"""What TensorFlow itself does badly in a format (F319, F322, F324, F341, F342): seen, planted, and mended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from castiron.keras.audit import audit
from castiron.keras.switches import denormals_flushed

L, ops = keras.layers, keras.ops
NARROW = {"bfloat16": 256.0, "float16": 2048.0}
X = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")


def head(call: Callable[[Any], Any], shape: tuple[int, ...] = (8,)) -> Any:
    """A Dense, and then this."""

    class Own(L.Layer):
        def call(self, x):
            return call(x)

        def compute_output_shape(self, shape):
            return shape

    return keras.Sequential([keras.Input(shape), L.Dense(4), Own(name="own")])


def codes(model: Any, batch: Any = X, policy: Any = "float32", **more: Any) -> dict[str, Any]:
    report = audit(model, batch, policy, **more)
    return {f.code: f for f in report.findings if f.severity != "info"}


# --- F319 ----------------------------------------------------------------------------------------------


def sigmoid_head(activation: str | None = "sigmoid", dtype: Any = None) -> Any:
    return keras.Sequential([keras.Input((8,)), L.Dense(1, activation, dtype=dtype, name="last")])


@pytest.mark.parametrize(("policy", "limit"), [("bf16-mixed", 6.3), ("mixed_float16", 8.4)])
def test_probabilities_rounded_to_one_have_no_gradient(policy: str, limit: float) -> None:
    narrow = {"bf16-mixed": tf.bfloat16, "mixed_float16": tf.float16}[policy]
    outputs = tf.constant([limit])
    assert float(tf.cast(tf.sigmoid(tf.cast(outputs, narrow)), tf.float32)[0]) == 1.0
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        p = tf.cast(tf.sigmoid(tf.cast(outputs, narrow)), tf.float32)
        loss = keras.losses.BinaryCrossentropy()(tf.zeros(1), p)
    assert float(tape.gradient(loss, outputs)[0]) == 0.0  # and the target is 0: it is as wrong as can be

    loss = keras.losses.BinaryCrossentropy()
    found = codes(sigmoid_head(), policy=policy, targets=np.zeros((16, 1), "float32"), loss=loss)
    assert set(found) == {"F319"}
    assert found["F319"].severity == "warning"
    assert "the loss is clipped, and its gradient zero" in str(found["F319"])


def test_a_loss_of_what_comes_before_the_sigmoid_is_fine() -> None:
    targets = np.zeros((16, 1), "float32")
    logits = keras.losses.BinaryCrossentropy(from_logits=True)
    assert codes(sigmoid_head(None), policy="bf16-mixed", targets=targets, loss=logits) == {}
    loss = keras.losses.BinaryCrossentropy()
    assert codes(sigmoid_head(), targets=targets, loss=loss) == {}
    wide = {"preset": "bf16-mixed", "layers": {"last": {"compute": "float32"}}}
    assert codes(sigmoid_head(), policy=wide, targets=targets, loss=loss) == {}


def test_a_logarithm_in_16_bits_is_infinite() -> None:
    def loss(outputs, batch):
        return tf.cast(-tf.reduce_mean(tf.math.log(1 - tf.sigmoid(outputs))), tf.float32)

    model = keras.Sequential([keras.Input((8,)), L.Dense(1, dtype="bfloat16")])
    found = codes(model, X.astype("bfloat16"), "bf16-true", loss=loss, as_is=True)
    assert found["F319"].severity == "error"
    assert bool(tf.math.is_inf(loss(tf.constant([8.0], tf.bfloat16), None)))


# --- F322, F323 ----------------------------------------------------------------------------------------


def test_tf32_left_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = head(tf.nn.relu)
    assert "F322" not in codes(model, as_is=True)  # a CPU has none
    monkeypatch.setattr("castiron.keras.audit.checks.switches.device", lambda: "cuda")
    assert tf.config.experimental.tensor_float_32_execution_enabled()  # as TensorFlow comes
    assert codes(model, as_is=True)["F322"].severity == "error"
    assert "F322" not in codes(model)  # `enforce` will set it
    assert "F322" not in codes(model, policy="tf32", as_is=True)


def test_subnormal_numbers_are_zero_in_tensorflow_whatever_anybody_does() -> None:
    assert denormals_flushed()  # on its own threads; by XLA as well:
    half = tf.function(lambda x: x * 0.5, jit_compile=True)
    assert float(half(tf.constant(1.17549435e-38))) == 0.0


# --- F324 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "function"),
    [("bf16-mixed", tf.math.lgamma), ("bf16-mixed", tf.math.erfinv), ("mixed_float16", tf.linalg.cholesky)],
)
def test_no_kernel_for_the_format(policy: str, function: Any) -> None:
    def call(x):
        return x + tf.reduce_mean(function(tf.eye(4, dtype=x.dtype) * 0.5)) if tf.is_tensor(x) else x

    model = head(call)
    found = codes(model, policy=policy)
    assert found["F324"].place.module == "own"
    assert found["F324"].place.line is not None
    narrow = {"bf16-mixed": tf.bfloat16, "mixed_float16": tf.float16}[policy]
    with pytest.raises((tf.errors.NotFoundError, tf.errors.InvalidArgumentError), match=r"OpKernel|device"):
        tf.function(function)(tf.eye(4, dtype=narrow) * 0.5)
    assert "F324" not in codes(model)


def test_what_xla_compiles_needs_no_kernel() -> None:
    model = head(lambda x: tf.math.lgamma(x) if tf.is_tensor(x) else x)
    model.compile("sgd", "mse", jit_compile=True)
    assert "F324" not in codes(model, policy="bf16-mixed")


# --- F341 ----------------------------------------------------------------------------------------------


def test_a_mean_over_the_wrong_axis() -> None:
    def wrong(x):
        return ops.sum(x, 1) / x.shape[0] if tf.is_tensor(x) else x[:, 0]  # fault

    def right(x):
        return ops.sum(x, 1) / x.shape[1] if tf.is_tensor(x) else x[:, 0]

    def dynamic(x):
        return tf.reduce_sum(x, 1) / tf.cast(tf.shape(x)[0], x.dtype) if tf.is_tensor(x) else x[:, 0]

    batch = np.ones((16, 10, 8), "float32")
    for call in (wrong, dynamic):
        found = codes(head(call, (10, 8)), batch)["F341"]
        assert "a sum over 10 numbers (axis 1 of [16, 10, 4]) is divided by 16" in str(found)
        assert found.severity == "warning"
    assert "F341" not in codes(head(right, (10, 8)), batch)


# --- F342 ----------------------------------------------------------------------------------------------

BY_INDEX: dict[str, Callable[[Any, Any], Any]] = {
    "unsorted_segment_sum": lambda ones, zeros: tf.math.unsorted_segment_sum(ones, zeros, 1),
    "segment_sum": lambda ones, zeros: tf.math.segment_sum(ones, zeros),
    "scatter_nd": lambda ones, zeros: tf.scatter_nd(zeros[:, None], ones, [1]),
    "tensor_scatter_nd_add": lambda ones, zeros: tf.tensor_scatter_nd_add(
        tf.zeros(1, ones.dtype), zeros[:, None], ones
    ),
    "keras": lambda ones, zeros: ops.segment_sum(ones, zeros, 1),
}


@pytest.mark.parametrize("name", BY_INDEX)
def test_sums_by_index_stop_counting(name: str) -> None:
    def model(n: int) -> Any:
        def call(x):
            if not tf.is_tensor(x):
                return x
            return x + BY_INDEX[name](tf.ones(n, x.dtype), tf.zeros(n, tf.int32))[0]

        return head(call)

    for dtype, most in NARROW.items():
        counted = BY_INDEX[name](tf.ones(5000, tf.as_dtype(dtype)), tf.zeros(5000, tf.int32))[0]
        assert float(tf.cast(counted, tf.float32)) == most
    found = codes(model(5000), policy="bf16-mixed")["F342"]
    assert "adds up in its own 16-bit format: ones stop counting at 256" in str(found)
    assert "F342" not in codes(model(200), policy="bf16-mixed")
    assert "F342" not in codes(model(5000))


def test_gradients_that_are_summed_in_16_bits() -> None:
    model = keras.Sequential([keras.Input((8,)), L.Dense(4, name="biased")])
    rows = np.ones((5000, 8), "float32")
    ones = tf.raw_ops.BiasAddGrad(out_backprop=tf.ones((5000, 3), tf.bfloat16))[0]
    assert float(tf.cast(ones, tf.float32)) == 256.0
    found = codes(model, rows, "bf16-mixed")["F342"]
    assert "the backward of BiasAdd: BiasAddGrad adds up 5,000 rows in bfloat16" in str(found)
    assert (found.place.module, found.severity) == ("biased", "warning")
    assert "F342" not in codes(model, policy="bf16-mixed")
    assert "F342" not in codes(model, rows, "mixed_float16")

    xla = tf.function(lambda x: tf.raw_ops.BiasAddGrad(out_backprop=x), jit_compile=True)
    assert float(tf.cast(xla(tf.ones((5000, 3), tf.bfloat16))[0], tf.float32)) == 4992.0
    model.compile("sgd", "mse", jit_compile=True)
    assert "F342" not in codes(model, rows, "bf16-mixed")


def test_gradients_that_are_summed_along_the_first_axis_in_float16() -> None:
    class Scaled(L.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), name="scale")

        def call(self, x):
            return ops.multiply(x, self.scale)

    model = keras.Sequential([keras.Input((8,)), Scaled(name="scaled")])
    rows = np.ones((40000, 8), "float32")
    assert float(tf.reduce_sum(tf.ones((5000, 3), tf.float16), 0)[0]) == 2048.0
    found = codes(model, rows, "mixed_float16")["F342"]
    assert "Sum adds up 40,000 numbers in float16" in str(found)
    assert found.place.module == "scaled"
    assert "F342" not in codes(model, rows, "bf16-mixed")
    assert "F342" not in codes(model, policy="mixed_float16")


def test_optimizers_whose_settings_a_format_does_not_hold() -> None:
    model = keras.Sequential([keras.Input((8,)), L.Dense(4, dtype="bfloat16")])
    found = codes(model, X.astype("bfloat16"), "bf16-true", optimizer=keras.optimizers.Adam(), as_is=True)
    assert "with beta_2=0.999 the second moment in bfloat16 never falls" in str(found["F342"])
    fine = keras.optimizers.Adam(beta_2=0.95)
    assert "F342" not in codes(model, X.astype("bfloat16"), "bf16-true", optimizer=fine, as_is=True)

    second = tf.Variable([1.0], dtype=tf.bfloat16)
    adam = keras.optimizers.Adam()
    variable = keras.Variable([1.0], dtype="bfloat16")
    adam.build([variable])
    adam._velocities[0].assign(second)
    for _ in range(50):
        adam.apply([tf.zeros(1, tf.bfloat16)], [variable])
    assert float(tf.cast(adam._velocities[0].value, tf.float32)[0]) == 1.0

    half = keras.Sequential([keras.Input((8,)), L.Dense(4, dtype="float16")])
    small = keras.optimizers.Adam(epsilon=1e-8)
    found = codes(half, X.astype("float16"), "fp16-true", optimizer=small, as_is=True)
    assert "epsilon=1e-08 is zero in float16" in str(found["F342"])
    adam = keras.optimizers.Adam(epsilon=1e-8)
    variable = keras.Variable([1.0], dtype="float16")
    adam.build([variable])
    adam.apply([tf.zeros(1, tf.float16)], [variable])
    assert bool(tf.math.is_nan(variable.value)[0])


# --- F340 ----------------------------------------------------------------------------------------------


def test_axes_that_are_not_as_declared() -> None:
    class Turned(L.Layer):
        def call(self, x):
            return ops.transpose(x, (0, 2, 1))

    layers = [keras.Input((10, 8)), L.Dense(4, name="first"), Turned(name="turned"), L.Dense(3, name="last")]
    model, batch = keras.Sequential(layers), np.ones((16, 10, 8), "float32")
    fine = {"first": "batch time 8 -> batch time 4", "turned": "batch time _ -> batch _ time", "": "-> ..."}
    assert "F340" not in codes(model, batch, shapes=fine)
    found = codes(
        model, batch, shapes={"first": "batch time 8 -> batch time 4", "last": "batch time 4 -> ..."}
    )
    assert (
        "a Dense is given a tensor of another shape than declared: its axes look like [batch, 4, time]"
        in str(found["F340"])
    )
    assert (found["F340"].place.module, found["F340"].severity) == ("last", "error")
    found = codes(model, batch, shapes={"lost": "batch"})
    assert "no layer has this path" in str(found["F340"])
