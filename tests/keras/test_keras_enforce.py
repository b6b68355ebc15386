"""Any Keras model under a policy, with its own fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from castiron.diagnostics import ConfigError, DataError, NumericIncident
from castiron.keras import enforce

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 4)).astype("float32")
Y = X.sum(1, keepdims=True)
BAD = X.copy()
BAD[17, 2] = np.inf
HOLD = {"preset": "float32", "guard": {"response": "hold", "budget": {"holds": 100}}}


def network() -> Any:
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((4,)),
            L.Dense(8, activation="relu", name="hidden"),
            L.BatchNormalization(name="norm"),
            L.Dropout(0.1),
            L.Dense(1, name="head"),
        ]
    )


@pytest.mark.parametrize("options", [{}, {"jit_compile": True}, {"run_eagerly": True}], ids=str)
def test_fit_learns_what_plain_fit_learns(options: dict[str, Any]) -> None:
    plain, guarded = network(), enforce(network())
    losses = []
    for model in (plain, guarded):
        keras.utils.set_random_seed(5)
        model.compile(keras.optimizers.Adam(0.01), loss="mse", metrics=["mae"], **options)
        history = model.fit(X, Y, epochs=2, batch_size=16, shuffle=False, verbose=0, validation_data=(X, Y))
        losses.append(history.history)
    assert losses[0].keys() == losses[1].keys()
    for name, values in losses[0].items():
        np.testing.assert_allclose(losses[1][name], values, rtol=2e-5)
    assert guarded.castiron.committed == 8
    np.testing.assert_allclose(guarded.evaluate(X, Y, verbose=0), plain.evaluate(X, Y, verbose=0), rtol=2e-5)


def test_a_bad_batch_stops_fit_before_anything_is_changed() -> None:
    model = enforce(network())
    model.compile(keras.optimizers.Adam(0.01), loss="mse")
    model.fit(X, Y, batch_size=16, verbose=0)
    before = [v.numpy().tobytes() for v in (*model.variables, *model.optimizer.variables)]
    with pytest.raises(
        NumericIncident, match="N507 Field '0' of the batch is not finite in row 1 of 16"
    ) as e:
        model.fit(BAD[16:32], Y[16:32], batch_size=16, shuffle=False, verbose=0)
    assert e.value.incident.rows[0].index == 1
    after = [v.numpy().tobytes() for v in (*model.variables, *model.optimizer.variables)]
    assert after[: len(before)] == before


def test_held_steps_leave_metrics_and_weights_clean_and_callbacks_go_on() -> None:
    model = enforce(network(), HOLD)
    model.compile(keras.optimizers.Adam(0.01), loss="mse", metrics=["mae"])
    ends: list[int] = []
    seen = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: ends.append(batch))
    history = model.fit(BAD, Y, batch_size=16, epochs=2, shuffle=False, verbose=0, callbacks=[seen])
    assert (model.castiron.committed, model.castiron.held) == (6, 2)
    assert len(ends) == 8
    assert np.isfinite(history.history["loss"]).all()
    assert np.isfinite(history.history["mae"]).all()
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert [f.code for f in model.castiron.findings] == ["N507", "N507"]


@pytest.mark.parametrize("policy", ["bf16-mixed", "fp16-mixed", "bf16-true", "float64"])
def test_policies_learn(policy: str) -> None:
    model = enforce(network(), policy)
    model.compile(keras.optimizers.Adam(0.03), loss="mse")
    losses = model.fit(X.astype("float64"), Y, batch_size=16, epochs=10, verbose=0).history["loss"]
    assert losses[-1] < losses[0] / 2
    assert keras.config.floatx() == "float32"
    assert not isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


def test_datasets_and_dictionaries_are_cast_by_role() -> None:
    inputs = keras.Input((4,), name="x")
    model = enforce(keras.Model({"x": inputs}, L.Dense(1, name="head")(inputs)))
    model.compile("sgd", loss="mse")
    data = tf.data.Dataset.from_tensor_slices(({"x": X.astype("float64")}, Y.astype("float64"))).batch(16)
    model.fit(data, epochs=1, verbose=0, shuffle=False)
    model.fit({"x": X}, Y, verbose=0, steps_per_epoch=2)
    assert model.castiron.committed == 6


def test_text_and_overflow_are_refused_with_the_place() -> None:
    model = enforce(network())
    model.compile("sgd", loss="mse")
    with pytest.raises(DataError, match=r"D117 .*Python objects: 'N/A'"):
        model.fit(np.array([[1.0, "N/A", 1, 2]], dtype=object), Y[:1], verbose=0)
    with pytest.raises(DataError, match="D103 a value does not fit into float32"):
        model.fit(np.full((1, 4), 1e300), Y[:1], verbose=0)


class Own(keras.Model):
    """A model with a train_step of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.head = L.Dense(1)
        self.norm = L.BatchNormalization()

    def call(self, x: Any, training: bool = False) -> Any:
        return self.head(self.norm(x, training=training))

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self(x, training=True) - y))
        gradients = tape.gradient(loss, [v.value for v in self.trainable_variables])
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


def test_a_train_step_of_ones_own_is_taken_back_where_it_is_bad() -> None:
    model = Own()
    model(X)
    enforce(model, HOLD)
    model.compile(keras.optimizers.Adam(0.01))
    model.fit(X, Y, batch_size=16, verbose=0)
    before = [v.numpy().tobytes() for v in (*model.variables, *model.optimizer.variables)]
    model.fit(BAD[16:32], Y[16:32], batch_size=16, shuffle=False, verbose=0)
    assert [v.numpy().tobytes() for v in (*model.variables, *model.optimizer.variables)] == before
    assert (model.castiron.committed, model.castiron.held) == (4, 1)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("fp16-mixed", "Own.train_step takes its own gradients: its loss is not scaled"),
        ("bf16-true", "Own.train_step gives its gradients to the optimizer itself"),
    ],
)
def test_a_train_step_that_cannot_be_wrapped_is_refused_with_the_reason(policy: str, words: str) -> None:
    model = Own()
    model(X)
    enforce(model, policy)
    with pytest.raises(ConfigError, match=f"X815 This cannot be guarded: {words}"):
        model.compile("adam")


class Two(Own):
    """A train_step with an optimizer that `compile` does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.second = keras.optimizers.SGD(0.1)

    def train_step(self, data: Any) -> dict[str, Any]:
        logs = super().train_step(data)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.abs(self(data[0], training=True) - data[1]))
        gradients = tape.gradient(loss, [v.value for v in self.head.trainable_variables])
        self.second.apply(gradients, self.head.trainable_variables)
        return {**logs, "second": loss}


def test_a_second_optimizer_is_taken_back_too_once_it_is_built() -> None:
    model = Two()
    model(X)
    enforce(model, HOLD)
    model.compile("adam")
    with pytest.raises(
        ConfigError, match=r"an optimizer 'second' that is not built.* Expected model.second.build"
    ):
        model.fit(X, Y, batch_size=32, verbose=0)
    model.second.build(model.head.trainable_variables)
    history = model.fit(BAD, Y, batch_size=16, shuffle=False, verbose=0)
    assert int(model.second.iterations) == model.castiron.committed == 3
    assert np.isfinite(history.history["second"]).all()
    assert all(np.isfinite(w).all() for w in model.get_weights())


class Opaque(Own):
    """A model that makes its train function by itself."""

    def make_train_function(self, force: bool = False) -> Any:
        return None


def test_a_train_function_of_ones_own_is_refused() -> None:
    model = Opaque()
    model(X)
    with pytest.raises(ConfigError, match=r"X815 .*Opaque.make_train_function is the model's own"):
        enforce(model)


def test_kerass_callbacks_are_honoured(tmp_path: Any) -> None:
    model = enforce(network(), {"preset": "bf16-true", "updates": {"master": "float32"}})
    model.compile(keras.optimizers.Adam(0.01), loss="mse")
    rates: list[float] = []
    callbacks = [
        keras.callbacks.ModelCheckpoint(tmp_path / "best.weights.h5", save_weights_only=True, monitor="loss"),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2),
        keras.callbacks.EarlyStopping(
            monitor="loss", mode="max", patience=1, restore_best_weights=True, start_from_epoch=0
        ),
        keras.callbacks.TerminateOnNaN(),
        keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: rates.append(float(model.optimizer.learning_rate))
        ),
    ]
    history = model.fit(X, Y, batch_size=16, epochs=6, verbose=0, callbacks=callbacks)
    epochs = len(history.history["loss"])
    assert epochs < 6  # it stopped: the loss falls, and EarlyStopping was told to wait for a rise
    np.testing.assert_allclose(rates, [0.01 / 2 ** (i + 1) for i in range(epochs)], rtol=1e-6)
    assert (tmp_path / "best.weights.h5").exists()
    # What a callback put into the model is what training goes on from, masters included.
    restored = [np.asarray(w, "float32") for w in model.get_weights()]
    model.optimizer.learning_rate.assign(0.0)
    model.fit(X, Y, batch_size=64, epochs=1, verbose=0)
    kernel = np.asarray(model.get_layer("hidden").kernel, "float32")
    np.testing.assert_array_equal(kernel, restored[0])


def test_arguments_may_be_given_by_position_and_batches_one_by_one() -> None:
    model = enforce(network())
    model.compile("sgd", loss="mse", metrics=["mae"])
    model.fit(X, Y, 32, 1, 0)
    assert model.castiron.committed == 2
    assert len(model.train_on_batch(X.astype("float64"), Y)) == 2
    assert len(model.test_on_batch(X, Y)) == 2
    assert model.predict_on_batch(X.astype("float64")).dtype == np.float32
    assert model.predict(X, 32, 0).shape == (64, 1)
    assert model.castiron.committed == 3
    with pytest.raises(NumericIncident, match="N507"):
        model.train_on_batch(BAD, Y)


class Sequence(keras.utils.PyDataset):
    """Batches without weights, in float64."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Any:
        return BAD[16 * i : 16 * i + 16].astype("float64"), Y[16 * i : 16 * i + 16].astype("float64")


def test_generators_weights_and_several_steps_at_a_time() -> None:
    model = enforce(network(), HOLD)
    model.compile("sgd", loss="mse", steps_per_execution=3)
    model.fit(Sequence(), epochs=2, verbose=0, shuffle=False)
    assert (model.castiron.committed, model.castiron.held) == (6, 2)
    model.fit(X, Y, sample_weight=np.ones(64), class_weight=None, batch_size=16, verbose=0)
    assert model.castiron.committed == 10


def test_keras_accumulates_gradients_and_a_held_batch_is_left_out() -> None:
    model = enforce(network(), HOLD)
    optimizer = keras.optimizers.SGD(0.01, gradient_accumulation_steps=2)
    model.compile(optimizer, loss="mse")
    before = model.get_weights()[0]
    model.fit(BAD[16:32], Y[16:32], batch_size=16, shuffle=False, verbose=0)
    model.fit(X[:16], Y[:16], batch_size=16, verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], before)
    model.fit(X[:16], Y[:16], batch_size=16, verbose=0)
    assert np.abs(model.get_weights()[0] - before).max() > 0
    assert int(model.optimizer.iterations) == 1  # Keras counts updates


def test_a_loaded_model_goes_on_with_its_optimizers_state(tmp_path: Any) -> None:
    plain = network()
    plain.compile(keras.optimizers.Adam(0.01), loss="mse")
    plain.fit(X, Y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    plain.save(tmp_path / "m.keras")
    loaded = enforce(keras.models.load_model(tmp_path / "m.keras"), HOLD)
    assert int(loaded.optimizer.iterations) == 8
    for before, after in zip(plain.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(before), np.asarray(after))
    loaded.fit(BAD, Y, batch_size=16, shuffle=False, verbose=0)
    assert (loaded.castiron.committed, loaded.castiron.held) == (3, 1)


def test_replicas_decide_as_one() -> None:
    script = Path(__file__).with_name("two_replicas.py")
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["plain"] == told["guarded"]
    assert told["unchanged"]
    assert (told["committed"], told["held"]) == (8, 1)
    assert told["incident"] == {
        "code": "N507",
        "rank": 1,
        "micro_batch": None,
        "rows": [5],
        "seen": {"loss": ["micro-batch 0"]} | told["incident"]["seen"],
    }
    assert told["scale"] < told["initial"]
    assert told["scales"] == [told["scale"]] * 2


def test_it_is_put_on_once() -> None:
    with pytest.raises(ConfigError, match="the model is under a policy already"):
        enforce(enforce(network()))


def test_the_model_saves_and_loads(tmp_path: Any) -> None:
    model = enforce(network(), "bf16-mixed")
    model.compile("adam", loss="mse")
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(
        np.asarray(loaded(X), "float32"), np.asarray(model(X), "float32"), rtol=1e-2, atol=1e-2
    )
