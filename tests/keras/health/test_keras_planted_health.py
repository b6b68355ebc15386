"""Planted diseases in Keras: what is said of them, in a loop of one's own and under `enforce`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from castiron.diagnostics import Finding
from castiron.health import tags
from castiron.health.recorder import read_advice
from castiron.keras import enforce, transaction

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 8)).astype("float32")


def train(
    model: Any,
    optimizer: Any,
    loss_of: Callable[[Any], Any],
    policy: Any = "float32",
    steps: int = 5,
    x: np.ndarray = X,
    health: Any = True,
) -> list[Finding]:
    """What is said of the health of so many steps, every one of them measured."""
    policy = {**({"preset": policy} if isinstance(policy, str) else policy), "health": {"every": 1}}
    with transaction(model, optimizer, policy, health=health) as step:
        for _ in range(steps):
            step(loss_of, {"x": x})
    return [f for f in step.findings if f.code.startswith("N52")]


def codes(found: list[Finding]) -> set[str]:
    return {f.code for f in found}


def dense(units: int = 4, *, start: Any = "glorot_uniform") -> Any:
    return keras.Sequential(
        [keras.Input((8,)), L.Dense(units, use_bias=False, kernel_initializer=start, name="head")]
    )


def narrow(scale: float) -> dict[str, Any]:
    return {"preset": "fp16-true", "scaling": {"kind": "static", "scale": scale}}


def test_float16_gradients_of_1e_8() -> None:
    """A float32 loss over float16 outputs whose gradient is 1e-8 everywhere: lost in the cast back."""

    def loss_of(model: Any) -> Callable[[Any], Any]:
        return lambda batch: tf.reduce_sum(tf.cast(model(batch["x"]), tf.float32)) * 1e-8

    model = dense()
    (f,) = train(model, keras.optimizers.SGD(0.0), loss_of(model), narrow(1), steps=1)
    assert f.code == "N520"
    assert f.evidence["share"] == 1
    k = f.evidence["scale_exponent"]
    assert 1e-8 * 2**k >= 6.1e-5 > 1e-8 * 2 ** (k - 2)
    assert "100 % of the elements of the loss's gradient underflow to zero in float16" in str(f)
    model = dense()  # and that scale does it
    assert train(model, keras.optimizers.SGD(0.0), loss_of(model), narrow(2.0**k), steps=1) == []


def test_bfloat16_weights_at_a_small_learning_rate() -> None:
    policy = {"preset": "bf16-true", "updates": {"master": None, "rounding": "nearest"}}
    model = dense(32, start="ones")
    found = train(
        model,
        keras.optimizers.AdamW(6e-4),
        lambda batch: tf.reduce_mean(tf.square(tf.cast(model(batch["x"]), tf.float32))),
        policy,
        x=np.abs(X),
    )
    assert codes(found) == {"N521"}
    assert found[0].place.module == "head"
    assert found[0].evidence["lost"] == found[0].evidence["wanted"] == 256


class ByHand(keras.Model):
    """A cell in a loop of Python's, whose state grows by half at every time step."""

    class Cell(L.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.gates = L.Dense(16)

        def call(self, x: Any, state: Any) -> Any:
            i, o = tf.split(tf.sigmoid(self.gates(x)), 2, -1)
            state = 1.5 * state + 0.01 * i
            return o * tf.tanh(state), state

    def __init__(self) -> None:
        super().__init__()
        self.cell = self.Cell()
        self.head = L.Dense(1)

    def call(self, x: Any) -> Any:
        h, state = None, tf.zeros([x.shape[0], 8])
        for t in range(x.shape[1]):
            h, state = self.cell(x[:, t], state)
        return self.head(h)


@pytest.mark.parametrize("kind", ["layer", "by hand"])
def test_a_recurrent_state_that_grows(kind: str) -> None:
    x = RNG.uniform(size=(5, 40, 4)).astype("float32")
    model: Any = ByHand()
    if kind == "layer":  # it hands on its last state alone
        model = keras.Sequential(
            [
                keras.Input((40, 4)),
                L.SimpleRNN(
                    8,
                    "relu",
                    recurrent_initializer=lambda shape, dtype=None: tf.eye(8, dtype=dtype) * 1.5,
                    kernel_initializer=keras.initializers.RandomUniform(0.1, 1),
                    name="cell",
                ),
            ]
        )
    model(x)
    found = train(
        model, keras.optimizers.Adam(1e-4), lambda batch: tf.reduce_mean(model(batch["x"])), steps=1, x=x
    )
    assert codes(found) == {"N523"}
    assert found[0].place.module == "cell"
    assert found[0].evidence["growth"] == pytest.approx(1.5, abs=0.15)


def test_adam_with_gradients_of_1e_25() -> None:
    model = dense()
    found = train(
        model, keras.optimizers.Adam(1e-3), lambda batch: tf.reduce_sum(model(batch["x"])) * 1e-27, steps=1
    )
    assert codes(found) == {"N524"}
    assert "100 % of Adam's second moments of a layer are zero where the first are not" in str(found[0])


def test_a_layer_near_65504() -> None:
    model = dense(8, start=lambda shape, dtype=None: tf.eye(8, dtype=dtype) * 40000)
    found = train(
        model,
        keras.optimizers.SGD(0.0),
        lambda batch: tf.reduce_mean(tf.cast(model(batch["x"]), tf.float32)) * 1e-3,
        "fp16-true",
        steps=1,
        x=np.ones((2, 8), "float32"),
    )
    near = [f for f in found if f.code == "N522"]
    assert [f.evidence["rule"] for f in near] == ['layers: {"head": {compute: float32}}']


def test_a_scale_that_is_stuck(tmp_path: Path) -> None:
    scaling = {"kind": "dynamic", "initial": 2.0**20, "patience": 9}
    model = dense()
    found = train(
        model,
        keras.optimizers.SGD(0.1),
        lambda batch: tf.reduce_mean(tf.cast(model(batch["x"]), tf.float32)) * 2.0**40,
        {"preset": "fp16-mixed", "scaling": scaling, "guard": {"response": "hold"}},
        steps=22,
        health=tmp_path,
    )
    assert [f.code for f in found] == ["N526"]
    assert "steps overflowed under the dynamic loss scale" in found[0].message
    assert [f.code for _, f in read_advice(tmp_path)] == ["N526"]


def test_fit_is_measured_and_left_as_it_is(tmp_path: Path) -> None:
    """A healthy model: nothing is said, everything is kept, and the weights are those of a plain guard."""

    def fitted(health: Any, epochs: int = 1) -> Any:
        keras.utils.set_random_seed(3)
        model = keras.Sequential(
            [
                keras.Input((12, 4)), L.LSTM(6, name="lstm"), L.Dense(6, "relu", name="hidden"),
                L.Dense(1, name="head"),
            ]
        )  # fmt: skip
        enforce(model, {"preset": "bf16-mixed", "health": {"every": 1}}, health=health)
        model.compile(keras.optimizers.AdamW(1e-2), loss="mse")
        x = RNG_X.normal(size=(40, 12, 4))
        for _ in range(epochs):
            model.fit(x, x[:, :1, 0], batch_size=8, shuffle=False, verbose=0)
        return model

    RNG_X = np.random.default_rng(1)
    model = fitted(tmp_path, epochs=2)
    RNG_X = np.random.default_rng(1)
    other = fitted(False, epochs=2)
    assert other.castiron.health is None
    assert [str(f) for f in model.castiron.findings if f.code.startswith("N5")] == []
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        assert np.allclose(a, b, rtol=2e-2, atol=2e-3)
    rows = pq.read_table(tmp_path / "health.parquet").to_pylist()
    assert {row["step"] for row in rows} == set(range(1, 11))  # of both calls of fit
    assert {(r["kind"], r["layer"]) for r in rows} >= {
        ("activations", "lstm"), ("activation gradients", "hidden"), ("gradients", "head"),
        ("updates", "head"), ("parameters", "lstm.cell"),
    }  # fmt: skip
    scalars = EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]
    assert {str(tags.headroom("activations")), str(tags.growth("lstm"))} <= set(scalars)
