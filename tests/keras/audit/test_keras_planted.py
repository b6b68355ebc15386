"""Small Keras models with one planted departure each: found, at its line, with the right code."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from castiron.keras.audit import audit

L, ops = keras.layers, keras.ops
CASES: list[tuple[str, Any, Callable[[], dict[str, Any]]]] = []
RNG = np.random.default_rng(0)


def case(code: str, policy: Any = "float32") -> Callable[[Any], Any]:
    """A case: a function that gives the arguments of `audit`; `# fault` marks the line."""

    def keep(make: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
        CASES.append((code, policy, make))
        return make

    return keep


def net(call: Callable[..., Any], *shape: int, **arguments: Any) -> Any:
    """Dense, then a layer whose `call` this is, with its own Dense `head` and vector `scale`."""

    class Own(L.Layer):
        def __init__(self):
            super().__init__(name="own", **arguments)
            self.head = L.Dense(4)

        def build(self, shape):
            self.scale = self.add_weight(shape=(4,), initializer="ones", name="scale")
            self.kernel = self.add_weight(shape=(8, 4), name="kernel")
            self.head.build(shape)
            super().build(shape)

        def call(self, x):
            return call(self, x)

        def compute_output_shape(self, shape):
            return (*shape[:-1], 4)

    return keras.Sequential([keras.Input(shape or (8,)), Own()])


def x(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape or (16, 8)).astype("float32")


# --- promotion, float64 --------------------------------------------------------------------------------


@case("F301")
def a_numpy_constant_in_keras_ops() -> dict[str, Any]:
    def call(self, x):
        return ops.multiply(self.head(x), np.arange(4.0))  # fault

    return {"model": net(call), "batch": x()}


@case("F301")
def concatenated_with_float64() -> dict[str, Any]:
    def call(self, x):
        return ops.concatenate([self.head(x), np.ones((16, 1))], axis=1)[:, :4]  # fault

    return {"model": net(call), "batch": x()}


@case("F301")
def a_choice_with_float64() -> dict[str, Any]:
    def call(self, x):
        y = self.head(x)
        return ops.where(y > 0, y, np.zeros(4))  # fault

    return {"model": net(call), "batch": x()}


@case("F301", "bf16-mixed")
def a_float32_constant_among_bfloat16() -> dict[str, Any]:
    def call(self, x):
        return ops.add(self.head(x), tf.ones(4))  # fault

    return {"model": net(call), "batch": x()}


@case("F302")
def a_cast_to_float64() -> dict[str, Any]:
    def call(self, x):
        return tf.cast(tf.tanh(tf.cast(self.head(x), tf.float64)), x.dtype)  # fault

    return {"model": net(call), "batch": x()}


@case("F302")
def a_float64_table_outside() -> dict[str, Any]:
    table = tf.constant(np.sin(np.arange(4.0)))

    def call(self, x):
        wide = tf.exp(table)  # fault
        return self.head(x) * tf.cast(wide, x.dtype)

    return {"model": net(call), "batch": x()}


@case("F302")
def a_float64_batch_cast_by_keras() -> dict[str, Any]:
    return {"model": keras.Sequential([keras.Input((8,)), L.Dense(4)]), "batch": x().astype("float64")}


@case("F302")
def float64_targets() -> dict[str, Any]:
    def loss(outputs, batch):
        wide = tf.cast(outputs, tf.float64)  # fault
        return tf.cast(tf.reduce_mean(tf.square(wide - np.ones(4))), tf.float32)

    return {"model": keras.Sequential([keras.Input((8,)), L.Dense(4)]), "batch": x(), "loss": loss}


# --- compute, casts ------------------------------------------------------------------------------------


@case("F303", "bf16-mixed")
def a_product_of_float32_operands() -> dict[str, Any]:
    def call(self, x):
        y = tf.matmul(tf.cast(x, tf.float32), tf.cast(self.kernel, tf.float32))  # fault
        return tf.cast(y, x.dtype)

    return {"model": net(call), "batch": x()}


@case("F303", "bf16-mixed")
def a_float32_model_declared_bfloat16() -> dict[str, Any]:
    return {"model": keras.Sequential([keras.Input((8,)), L.Dense(4)]), "batch": x(), "as_is": True}


@case("F304")
def a_cast_to_float16() -> dict[str, Any]:
    def call(self, x):
        return tf.cast(tf.tanh(tf.cast(self.head(x), tf.float16)), tf.float32)  # fault

    return {"model": net(call), "batch": x()}


@case("F304")
def a_cast_to_bfloat16_through_keras_ops() -> dict[str, Any]:
    def call(self, x):
        return ops.cast(ops.tanh(ops.cast(self.head(x), "bfloat16")), "float32")  # fault

    return {"model": net(call), "batch": x()}


@case("F305", "bf16-mixed")
def autocast_off() -> dict[str, Any]:
    def call(self, x):
        return tf.matmul(x, self.kernel)  # fault

    return {"model": net(call, autocast=False), "batch": x()}


@case("F306")
def operands_of_two_formats() -> dict[str, Any]:
    def call(self, x):
        if not tf.is_tensor(x):
            return self.head(x)
        return self.head(x) + tf.ones(4, tf.float64)  # fault

    return {"model": net(call), "batch": x()}


@case("F307")
def floats_as_indices() -> dict[str, Any]:
    def call(self, x):
        if not tf.is_tensor(x):
            return self.head(x)
        return tf.gather(self.scale, x)[:, :4]  # fault

    return {"model": net(call), "batch": x()}


# --- islands -------------------------------------------------------------------------------------------


@case("F308", "bf16-mixed")
def softmax_in_bfloat16() -> dict[str, Any]:
    def call(self, x):
        return tf.nn.softmax(self.head(x))  # fault

    return {"model": net(call), "batch": x()}


@case("F308", "fp16-mixed")
def exp_in_float16() -> dict[str, Any]:
    def call(self, x):
        return ops.exp(self.head(x))  # fault

    return {"model": net(call), "batch": x()}


@case("F308", "fp16-mixed")
def a_sum_over_time_in_float16() -> dict[str, Any]:
    def call(self, x):
        return tf.reduce_sum(self.head(x), axis=1)  # fault

    return {"model": net(call, 100, 8), "batch": x(4, 100, 8)}


@case("F308", "mixed_float16")
def a_softmax_head_left_in_float16() -> dict[str, Any]:
    model = keras.Sequential([keras.Input((8,)), L.Dense(4, "softmax", dtype="mixed_float16")])
    return {"model": model, "batch": x(), "as_is": True}


@case("F308", "fp16-mixed")
def a_functional_loss_in_float16() -> dict[str, Any]:
    def loss(outputs, batch):
        return ops.cast(tf.reduce_mean(tf.math.log(tf.nn.relu(outputs) + 0.5)), "float32")  # fault

    return {"model": keras.Sequential([keras.Input((8,)), L.Dense(4)]), "batch": x(), "loss": loss}


@case("F309")
def there_and_back() -> dict[str, Any]:
    def call(self, x):
        return self.head(tf.cast(tf.cast(x, tf.bfloat16), tf.float32))  # fault

    return {"model": net(call), "batch": x()}


@case("F316", "bf16-mixed")
def a_running_sum() -> dict[str, Any]:
    def call(self, x):
        y = self.head(x)
        total = tf.zeros((), y.dtype)
        for row in tf.unstack(y):
            total = total + row[0]  # fault
        return y * total

    return {"model": net(call), "batch": x()}


@case("F316", "bf16-mixed")
def a_running_sum_in_a_loop() -> dict[str, Any]:
    def call(self, x):
        y = self.head(x)
        if not tf.is_tensor(y):
            return y

        def more(i, total):
            return i + 1, total + y[i, 0]  # fault

        _, total = tf.while_loop(
            lambda i, total: i < 16, more, (0, tf.zeros((), y.dtype)), maximum_iterations=16
        )
        return y * total

    return {"model": net(call), "batch": x()}


@case("F320", "fp16-mixed")
def a_mask_of_minus_a_billion() -> dict[str, Any]:
    def call(self, x):
        y = self.head(x)
        if not tf.is_tensor(y):
            return y
        return y + tf.cast(y > 0, y.dtype) * -1e9  # fault

    return {"model": net(call), "batch": x()}


@case("F321", "fp16-mixed")
def an_epsilon_that_vanishes() -> dict[str, Any]:
    def call(self, x):
        y = self.head(x)
        return y / (tf.abs(y) + 1e-8) if tf.is_tensor(y) else y  # fault

    return {"model": net(call), "batch": x()}


@case("F325", "bf16-mixed")
def a_weight_cast_in_a_loop() -> dict[str, Any]:
    def call(self, x):
        y = self.head(x)
        if not tf.is_tensor(y):
            return y
        for _ in range(3):
            y = y * tf.cast(tf.convert_to_tensor(self.scale._value), tf.bfloat16)  # fault
        return y

    return {"model": net(call), "batch": x()}


# --- outputs, loss -------------------------------------------------------------------------------------


def _square(targets, outputs):
    return tf.reduce_mean(tf.square(outputs - tf.cast(targets, outputs.dtype)))


@case("F310", "mixed_float16")
def a_functional_loss_of_keras_in_float16() -> dict[str, Any]:
    def loss(outputs, batch):
        return tf.reduce_mean(keras.losses.mean_squared_error(tf.ones((16, 4)), outputs))

    return {"model": keras.Sequential([keras.Input((8,)), L.Dense(4)]), "batch": x(), "loss": loss}


@case("F311")
def a_layer_that_hands_on_float16() -> dict[str, Any]:
    def call(self, x):
        return tf.cast(self.head(x), tf.float16)

    return {"model": net(call), "batch": x()}


@case("F317")
def targets_of_another_rank() -> dict[str, Any]:
    def loss(outputs, batch):
        return tf.reduce_mean(tf.square(outputs[:, :1] - tf.ones(16)))  # fault

    return {"model": keras.Sequential([keras.Input((8,)), L.Dense(4)]), "batch": x(), "loss": loss}


@case("F318")
def a_reshape_across_the_batch() -> dict[str, Any]:
    def call(self, x):
        return tf.reshape(self.head(x), (1, -1))[:, :4]

    return {"model": net(call), "batch": x()}


# --- what is stored, the optimizer -----------------------------------------------------------------------


@case("F312", "float32")
def stored_in_bfloat16() -> dict[str, Any]:
    return {"model": keras.Sequential([keras.Input((8,)), L.Dense(4, dtype="bfloat16")]), "batch": x(),
            "as_is": True}  # fmt: skip


@case("F313", {"preset": "bf16-true", "state": "float32"})
def moments_in_bfloat16() -> dict[str, Any]:
    model = keras.Sequential([keras.Input((8,)), L.Dense(4)])
    return {"model": model, "batch": x(), "optimizer": keras.optimizers.Adam()}


@case("F314", "bf16-true")
def no_master_weights() -> dict[str, Any]:
    model = keras.Sequential([keras.Input((8,)), L.Dense(4)])
    return {"model": model, "batch": x(), "optimizer": keras.optimizers.SGD()}


# --- integers -------------------------------------------------------------------------------------------


@case("F315", "bf16-mixed")
def positions_in_bfloat16() -> dict[str, Any]:
    def call(self, x):
        y = self.head(x)
        if not tf.is_tensor(y):
            return y
        return y + tf.reduce_max(tf.cast(tf.range(1000), y.dtype))  # fault

    return {"model": net(call), "batch": x()}


@case("F315")
def ids_in_bfloat16() -> dict[str, Any]:
    ids = np.full((4, 5), 2909)
    model = keras.Sequential([keras.Input((5,), dtype="bfloat16"), L.Embedding(3000, 4), L.LSTM(3)])
    return {"model": model, "batch": ids, "as_is": True}


@case("F333")
def a_padded_series_of_whole_numbers() -> dict[str, Any]:
    padded = keras.utils.pad_sequences([[0.5, 1.7], [2.2]], maxlen=4)[..., None]
    return {"model": keras.Sequential([keras.Input((4, 1)), L.LSTM(3)]), "batch": padded}


# --- Keras's own ----------------------------------------------------------------------------------------


@case("F332", "mixed_float16")
def nothing_scales_the_loss() -> dict[str, Any]:
    model = keras.Sequential([keras.Input((8,)), L.Dense(4, dtype="mixed_float16")])
    return {"model": model, "batch": x(), "optimizer": keras.optimizers.Adam(), "as_is": True}


@case("F334")
def a_policy_set_after_the_layer_was_built() -> dict[str, Any]:
    model = keras.Sequential([keras.Input((8,)), L.Dense(4)])
    model.layers[0].dtype_policy = keras.DTypePolicy("float64")
    return {"model": model, "batch": x(), "as_is": True}


@case("F331")
def half_of_the_layers_in_float64() -> dict[str, Any]:
    model = keras.Sequential([keras.Input((8,)), L.Dense(8), L.Dense(4, dtype="float64")])
    return {"model": model, "batch": x(), "as_is": True}


@case("D117")
def an_array_of_objects() -> dict[str, Any]:
    batch = np.array([[1.0, "n/a"]] * 4, dtype=object)
    return {"model": keras.Sequential([keras.Input((2,)), L.Dense(4)]), "batch": batch}


@case("D101")
def an_array_of_text() -> dict[str, Any]:
    batch = np.array([["1.0", "2.0"]] * 4)
    return {"model": keras.Sequential([keras.Input((2,)), L.Dense(4)]), "batch": batch}


@case("F327")
def a_batch_that_does_not_fit() -> dict[str, Any]:
    return {"model": keras.Sequential([keras.Input((8,)), L.Dense(4)]), "batch": x(16, 3)}


@pytest.mark.parametrize(("code", "policy", "make"), CASES, ids=[f"{c}-{m.__name__}" for c, _, m in CASES])
def test_the_planted_fault_is_found(code: str, policy: Any, make: Callable[[], dict[str, Any]]) -> None:
    report = audit(policy=policy, **make())
    found = [f for f in report.findings if f.code == code]
    assert found, [f"{f.severity} {f}" for f in report.findings]
    assert any(f.severity != "info" for f in found)
    assert all(f.expected and f.received and f.remedy for f in found)
    lines, start = inspect.getsourcelines(make)
    marked = [start + i for i, line in enumerate(lines) if "# fault" in line]
    if marked:
        assert marked[0] in [f.place.line for f in found], [str(f) for f in found]
        assert {f.place.file for f in found if f.place.line == marked[0]} == {__file__}
    others = {f.code for f in report.errors} - {code}
    assert others <= _WITH.get(code, set()), [str(f) for f in report.errors]


_WITH: dict[str, set[str]] = {
    "F310": {"F308"}, "F308": {"F310"}, "F312": {"F303", "F310", "F311"}, "F313": {"F314"},
    "F303": {"F312", "F311"}, "F315": {"F304"}, "F311": {"F304"}, "F334": {"F303", "F302", "F330"},
    "F331": {"F302", "F312", "F301"}, "F332": {"F311", "F308", "F310"}, "F304": set(),
}  # fmt: skip
"""What else is rightly said beside a code."""
