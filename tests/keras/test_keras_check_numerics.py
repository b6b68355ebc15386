"""What TensorFlow's own `enable_check_numerics` finds, by the scenarios of its own tests: found here too, as
exactly, and also where it cannot look (under XLA) or need not (an expected -inf)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from castiron import NumericIncident
from castiron.keras import enforce, transaction
from castiron.training.incident import Incident

L = keras.layers
MODES = ("eager", "graph")


class Identity(keras.Model):
    """One weight, of 1, that the input is multiplied with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = self.add_weight(shape=(), initializer="ones", name="weight")

    def call(self, x: Any) -> Any:
        return x * self.weight


def incident_of(loss_of: Any, batch: Any, mode: str, policy: Any = "float32", model: Any = None) -> Incident:
    """What is said of one step."""
    model = model or Identity()
    tf.config.run_functions_eagerly(mode == "eager")
    try:
        with (
            transaction(model, keras.optimizers.SGD(0.1), policy, jit_compile=mode == "jit") as step,
            pytest.raises(NumericIncident) as e,
        ):
            step(lambda b: loss_of(model, b), batch)
    finally:
        tf.config.run_functions_eagerly(False)
    incident: Incident = e.value.incident
    return incident


@pytest.mark.parametrize("mode", [*MODES, "jit"])
def test_an_infinite_quotient_in_float32(mode: str) -> None:
    def loss_of(model: Any, batch: Any) -> Any:
        return tf.reduce_sum(model(batch["x"]) / batch["y"])

    batch = {"x": np.array([1.0, 2.0, 1.0], "float32"), "y": np.array([1.0, 0.0, 2.0], "float32")}
    found = incident_of(loss_of, batch, mode)
    assert (found.producer.op, found.code, found.phase) == ("RealDiv", "N504", "loss")
    (result,) = found.results
    assert (result.dtype, result.shape, result.posinf, result.nan) == ("float32", (3,), 1, 0)
    assert [(o.name, o.min, o.max) for o in found.operands] == [("input (Mul)", 1, 2), ("y", 0, 2)]
    assert found.producer.source is not None
    assert found.producer.source.text == 'return tf.reduce_sum(model(batch["x"]) / batch["y"])'
    assert [r.index for r in found.rows] == [1]


@pytest.mark.parametrize("mode", [*MODES, "jit"])
def test_the_logarithm_of_zero_in_float16(mode: str) -> None:
    def loss_of(model: Any, batch: Any) -> Any:
        return tf.reduce_sum(tf.cast(tf.math.log(tf.cast(model(batch["x"]), tf.float16)), tf.float32))

    found = incident_of(loss_of, {"x": np.array([[-1.0, 0.0], [1.0, 2.0]], "float32")}, mode)
    assert (found.producer.op, found.event) == ("Log", "domain")
    (result,) = found.results
    assert (result.dtype, result.shape, result.nan, result.neginf) == ("float16", (2, 2), 1, 1)
    assert [r.index for r in found.rows] == [0]


@pytest.mark.parametrize("mode", [*MODES, "jit"])
def test_float64_inside_of_a_tf_function(mode: str) -> None:
    @tf.function
    def divide_sum_by_difference(x: Any, y: Any) -> Any:
        total, difference = x + y, x - y
        return total / difference

    def loss_of(model: Any, batch: Any) -> Any:
        x, y = tf.cast(model(batch["x"]), tf.float64), tf.cast(batch["y"], tf.float64)
        return tf.cast(tf.reduce_sum(divide_sum_by_difference(x, y)), tf.float32)

    found = incident_of(loss_of, {"x": np.float32([3, 1]), "y": np.float32([1, 1])}, mode)
    assert found.producer.op == "RealDiv"
    assert [o.name for o in found.operands] == ["input (AddV2)", "other (Sub)"]
    assert (found.results[0].dtype, found.results[0].posinf) == ("float64", 1)
    assert found.producer.source is not None
    assert found.producer.source.text == "return total / difference"


@pytest.mark.parametrize("mode", [*MODES, "jit"])
def test_control_flow_in_bfloat16(mode: str) -> None:
    @tf.function
    def root_if_small(x: Any) -> Any:
        return tf.cond(tf.reduce_sum(x) < 10, lambda: tf.sqrt(x), lambda: x)

    def loss_of(model: Any, batch: Any) -> Any:
        return tf.cast(tf.reduce_sum(root_if_small(tf.cast(model(batch["x"]), tf.bfloat16))), tf.float32)

    found = incident_of(loss_of, {"x": np.float32([1, -4])}, mode)
    assert (found.producer.op, found.event) == ("Sqrt", "domain")
    assert (found.results[0].dtype, found.results[0].nan) == ("bfloat16", 1)
    assert [r.index for r in found.rows] == [1]


def doubled_by_while_loop(x: Any) -> Any:
    def body(i: Any, value: Any) -> Any:
        return i + 1, value * 2.0

    return tf.while_loop(lambda i, value: i < 1000, body, (tf.constant(0), x), maximum_iterations=1000)[1]


@tf.function
def doubled_by_autograph(x: Any) -> Any:
    for _ in tf.range(1000):
        x = x * 2.0
    return x


@pytest.mark.parametrize(
    ("doubled", "mode"),
    [
        *((doubled_by_while_loop, m) for m in (*MODES, "jit")),
        # XLA does not compile the gradient of a loop without a declared length.
        *((doubled_by_autograph, m) for m in MODES),
    ],
)
def test_a_while_loop_that_overflows_is_told_with_its_turn(doubled: Callable[..., Any], mode: str) -> None:
    def loss_of(model: Any, batch: Any) -> Any:
        return tf.reduce_sum(doubled(model(batch["x"])))

    found = incident_of(loss_of, {"x": np.float32([1.0])}, mode)
    assert (found.producer.op, found.event) == ("Mul", "overflow")
    assert found.producer.time_index == 127  # 2 ** 128 is what float32 cannot hold: the 128th turn
    assert found.operands[0].max == 2.0**127
    assert found.producer.source is not None
    assert "2.0" in found.producer.source.text


@pytest.mark.parametrize("mode", [*MODES, "jit"])
def test_a_nan_in_a_constant(mode: str) -> None:
    def loss_of(model: Any, batch: Any) -> Any:
        bad = tf.constant(np.nan)
        return tf.reduce_sum(model(batch["x"]) + bad)

    found = incident_of(loss_of, {"x": np.float32([1.0])}, mode)
    assert (found.code, found.message) == ("N506", "AddV2 was given a constant that is NaN")
    assert found.operands[0].model_dump(include={"name", "dtype", "shape", "nan"}) == {
        "name": "constant", "dtype": "float32", "shape": (), "nan": 1,
    }  # fmt: skip
    assert found.producer.source is not None
    assert found.producer.source.text.endswith("+ bad)")


@pytest.mark.parametrize("mode", [*MODES, "jit"])
def test_a_custom_gradient_with_a_nan(mode: str) -> None:
    @tf.custom_gradient
    def log_with_bad_gradient(x: Any) -> Any:
        def gradient(upstream: Any) -> Any:
            return tf.math.log(-tf.abs(upstream)) * 1.0

        return tf.math.log(x), gradient

    @tf.function
    def inner(x: Any) -> Any:
        return log_with_bad_gradient(x)

    found = incident_of(lambda m, b: tf.reduce_sum(inner(m(b["x"]))), {"x": np.float32([1.0, 2.0])}, mode)
    assert (found.phase, found.event) == ("backward", "domain")
    assert found.producer.op == "Log"
    assert found.producer.source is not None
    assert found.producer.source.text == "return tf.math.log(-tf.abs(upstream)) * 1.0"
    assert (found.results[0].dtype, found.results[0].nan) == ("float32", 2)


@pytest.mark.parametrize("mode", [*MODES, "jit"])
def test_the_gradient_of_nested_functions(mode: str) -> None:
    @tf.function
    def asinp1(x: Any) -> Any:
        return tf.math.asin(x) + 1.0

    @tf.function
    def loss(x: Any) -> Any:
        return tf.square(asinp1(x))

    # asin is finite at 1, and its slope is not.
    found = incident_of(lambda m, b: tf.reduce_sum(loss(m(b["x"]))), {"x": np.float32([0.5, 1.0])}, mode)
    assert (found.phase, found.producer.op, found.event) == ("backward", "AsinGrad", "domain")
    assert found.producer.source is not None
    assert found.producer.source.text == "return tf.math.asin(x) + 1.0"
    assert [r.index for r in found.rows] == [1]


@pytest.mark.parametrize("mode", MODES)
def test_batch_norm_of_nothing_is_tolerated(mode: str) -> None:
    model = keras.Sequential([keras.Input((4, 4, 2)), L.BatchNormalization(name="norm"), L.Dense(1)])
    tf.config.run_functions_eagerly(mode == "eager")
    try:
        with transaction(model, keras.optimizers.SGD(0.1)) as step:

            def loss_of(batch: Any) -> Any:
                empty = tf.compat.v1.nn.fused_batch_norm(batch["x"][:0], [1.0, 1.0], [0.0, 0.0])[0]
                return tf.reduce_sum(model(batch["x"])) + tf.reduce_sum(empty)

            assert step(loss_of, {"x": np.ones((2, 4, 4, 2), "float32")}).committed
    finally:
        tf.config.run_functions_eagerly(False)


def test_an_infinity_inside_of_dataset_map() -> None:
    def inverse(x: Any, y: Any) -> Any:
        return 1.0 / x, y

    x = np.float32([[1.0], [2.0], [0.0], [4.0]])
    data = tf.data.Dataset.from_tensor_slices((x, x)).map(inverse).batch(2)
    model = enforce(keras.Sequential([keras.Input((1,)), L.Dense(1)]))
    model.compile("sgd", "mse")
    with pytest.raises(NumericIncident) as e:
        model.fit(data, shuffle=False, verbose=0)
    found = e.value.incident
    assert (found.code, found.phase, found.event) == ("N507", "data", "data")
    assert [r.index for r in found.rows] == [0]
    assert found.producer.op == "RealDiv"
    assert found.producer.source is not None
    assert found.producer.source.text == "return 1.0 / x, y"
    assert (found.results[0].dtype, found.results[0].posinf) == ("float32", 1)
    assert "Dataset.map" in found.message


def test_a_healthy_dataset_map_goes_through() -> None:
    data = tf.data.Dataset.from_tensor_slices(np.float32([[1.0], [2.0]])).map(lambda x: (1.0 / x, x)).batch(2)
    model = enforce(keras.Sequential([keras.Input((1,)), L.Dense(1)]))
    model.compile("sgd", "mse")
    model.fit(data, shuffle=False, verbose=0)
    assert model.castiron.committed == 1
