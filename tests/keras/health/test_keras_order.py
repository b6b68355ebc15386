"""The noise of accumulation order, measured in the graph of a step: what the NumPy reference says."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from castiron.health.dynamics import accumulation_noise
from castiron.health.dynamics import parts_of as parts_by_reference
from castiron.keras import enforce, transaction
from castiron.keras.health.order import parts_of

L = keras.layers
RNG = np.random.default_rng(0)


def in_graph(shape: tuple[int, ...], axis: int, jit: bool) -> Any:
    """`parts_of` in a graph that does not know how many rows there will be."""
    signature = tf.TensorSpec([None, *shape[1:]], "float32")
    return tf.function(
        lambda gradient: parts_of(gradient, axis), input_signature=[signature], jit_compile=jit
    )


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_the_parts_are_the_references(jit: bool) -> None:
    for shape, axis in (((32, 5), -1), ((3, 5, 7), -1), ((13, 4, 3, 2), 1), ((9, 300), -1)):
        values = RNG.normal(size=shape).astype("float32")
        expected = parts_by_reference(values[:, ::5] if shape[-1] == 300 else values, axis)
        found = in_graph(shape, axis, jit)(tf.constant(values))
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    assert not in_graph((7, 2), -1, jit)(tf.ones([7, 2])).numpy().any()
    assert parts_of(tf.ones([5]), -1) is None


def snapshots(model: Any, loss_of: Any, batches: list[Any], policy: Any) -> list[Any]:
    """What was measured of as many steps."""
    seen: list[Any] = []
    with transaction(model, keras.optimizers.SGD(0.0), policy, health=True) as step:
        assert step.health is not None
        for micro in batches:
            step(loss_of, *micro)
            seen.append(step.health.monitor.last)
    return seen


def test_the_layers_of_a_model_where_what_if_is_asked() -> None:
    x = RNG.normal(size=(32, 6, 8)).astype("float32")
    model = keras.Sequential(
        [keras.Input((6, 8)), L.Conv1D(4, 3, name="conv"), L.ReLU(), L.LSTM(5, name="lstm"),
         L.Dense(3, name="head")]
    )  # fmt: skip

    def loss_of(batch: Any) -> Any:
        return tf.reduce_sum(tf.square(tf.cast(model(batch["x"]), tf.float32)))

    policy = {"preset": "float32", "health": {"every": 1}}
    found = snapshots(model, loss_of, [({"x": x[:16]}, {"x": x[16:]})] * 3, policy)
    assert [bool(s.noise) for s in found] == [False, False, True]  # beside what other formats would make
    assert set(found[2].noise) == {"conv", "lstm", "head"}
    assert all(0 < noise < 1e-4 for noise in found[2].noise.values())
    # Of the last layer the gradient is known: twice what it hands on, of both micro-batches.
    halves = [2 * np.asarray(model(h)) for h in (x[:16], x[16:])]
    parts = sum(parts_by_reference(h) for h in halves)
    assert found[2].noise["head"] == pytest.approx(accumulation_noise(parts, "float32"), rel=0.5)


def test_in_the_format_that_gradients_are_added_up_in() -> None:
    x = RNG.normal(size=(64, 8)).astype("float32")
    noise = []
    for accumulate in ("float32", "float64"):
        model = keras.Sequential([keras.Input((8,)), L.Dense(64, name="head")])
        policy = {"preset": "float32", "accumulate": accumulate, "health": {"every": 1}}
        loss_of = lambda b: tf.reduce_sum(tf.square(tf.cast(model(b["x"]), tf.float32)))  # noqa: B023, E731
        noise.append(snapshots(model, loss_of, [({"x": x},)] * 3, policy)[2].noise["head"])
    assert 1e-9 < noise[0] < 1e-5  # never in 16 bits: gradients are added up in float32 at least
    assert noise[1] < 1e-14


def test_an_optimizer_that_adds_gradients_up_is_measured_where_it_updates() -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), L.Dense(4, name="head")])
    enforce(model, {"preset": "float32", "health": {"every": 2}})
    model.compile(keras.optimizers.Adam(1e-3, gradient_accumulation_steps=3), loss="mse")
    x = RNG.normal(size=(96, 8)).astype("float32")
    steps: list[int] = []
    monitor = model.castiron.health.monitor
    committed = monitor.committed

    def noted(watch: Any, given: Any, step: int, *more: Any) -> Any:
        steps.append(step)
        return committed(watch, given, step, *more)

    monitor.committed = noted
    model.fit(x, x[:, :4], batch_size=8, verbose=0)
    assert steps == [3, 6, 9, 12]
    assert model.castiron.findings == []  # a step that only adds up loses no update
