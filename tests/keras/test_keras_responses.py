"""What follows a held step beside raising and holding: going back, a lower rate, a wider layer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from castiron.diagnostics import CastironError, ConfigError, NumericIncident
from castiron.keras import enforce, replay_incident
from castiron.training.backend import Remedies, load_backend
from castiron.training.incident_config import load_incident_config
from castiron.training.incident_folder import IncidentFolder

sys.path.insert(0, str(Path(__file__).parent))

from keras_written_recipe import run_written

L = keras.layers
X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
Y = X.sum(1, keepdims=True)


class Diverging(keras.Model):
    """Overflows where it is told to: it is the model that is to blame, not the data."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = L.Dense(4, name="hidden"), L.Dense(1, name="head")

    def call(self, x: Any) -> Any:
        h = self.hidden(x)
        far = tf.cast(tf.reduce_any(x > 50, -1, keepdims=True), h.dtype)
        return self.head(h) * (1 + far * 1e30) * (1 + far * 1e30)


def guarded(response: str, *, compiled: Any = "adam", **section: Any) -> Any:
    keras.utils.set_random_seed(1)
    model = Diverging()
    model(X)
    enforce(model, {"preset": "float32", "guard": {"response": response, **section}})
    model.compile(compiled, loss="mse")
    return model


def batches(bad: int) -> np.ndarray:
    x = X.copy()
    x[16 * bad, 0] = 100.0
    return x


def test_lower_lr_halves_the_rate_and_goes_on() -> None:
    model = guarded("lower-lr", compiled=keras.optimizers.SGD(0.01))
    model.fit(batches(1), Y, batch_size=16, shuffle=False, verbose=0)
    assert (model.castiron.committed, model.castiron.held) == (3, 1)
    np.testing.assert_allclose(float(model.optimizer.learning_rate), 0.005)
    # Where the data are to blame, a lower rate is no help.
    x = X.copy()
    x[0, 0] = np.nan
    model.fit(x, Y, batch_size=16, shuffle=False, verbose=0)
    np.testing.assert_allclose(float(model.optimizer.learning_rate), 0.005)


def test_a_schedule_of_the_optimizers_own_cannot_be_lowered() -> None:
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    with pytest.raises(ConfigError, match=r"X815 The learning rate is a schedule .*ExponentialDecay"):
        guarded("lower-lr", compiled=keras.optimizers.SGD(schedule))


def test_rollback_goes_back_to_the_state_of_some_steps_before() -> None:
    model = guarded("rollback", rollback={"steps": 2})
    states: list[tuple[int, list[bytes]]] = []

    def keep(*_: Any, **__: Any) -> None:
        variables = [*model.variables, *model.optimizer.variables]
        states.append((model.castiron.committed, [v.numpy().tobytes() for v in variables]))

    watch = keras.callbacks.LambdaCallback(on_train_begin=keep, on_train_batch_end=keep)
    model.fit(batches(3), Y, batch_size=16, shuffle=False, verbose=0, callbacks=[watch])
    # 0, 1, 2 are committed, 3 is bad: back to a state at least two steps old
    assert [step for step, _ in states] == [0, 1, 2, 3, 0]
    assert states[-1] == states[0]
    assert int(model.optimizer.iterations) == 0


def test_promote_lets_the_layer_compute_in_float32_from_there_on() -> None:
    model = keras.Sequential(
        [
            keras.Input((4,)),
            L.Dense(4, use_bias=False, kernel_initializer=keras.initializers.Constant(200.0), name="big"),
            L.Rescaling(1e-6, name="shrink"),
            L.Dense(1, name="head"),
        ]
    )
    policy = {
        "preset": "fp16-mixed",
        "layers": {"shrink": {"compute": "float32"}},
        "scaling": {"kind": "static", "scale": 1.0},
        "guard": {"response": "promote"},
    }
    enforce(model, policy)
    model.compile(keras.optimizers.Adam(1e-3), loss="mse")
    x = np.clip(X, -1, 1)
    x[32:] += 400  # the product passes 65,504
    model.fit(x, Y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    assert (model.castiron.committed, model.castiron.held) == (7, 1)
    assert model.castiron.plan.row("big").compute == "float32"
    assert model.get_layer("big").compute_dtype == "float32"
    assert model.get_layer("head").compute_dtype == "float16"
    assert str(model.castiron.findings[-1]).startswith("N501 MatMul overflows float16")
    assert int(model.optimizer.iterations) == 7


PRODUCTS = """
    def model(self):
        return keras.Sequential(
            [
                keras.Input((1,)),
                keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(100.0), name="big"),
                keras.layers.Rescaling(0.01, name="shrink"),
                keras.layers.Dense(1, name="head"),
            ]
        )

    def inputs(self, batch):
        return (batch["x"][:, None],)

    def loss(self, outputs, batch):
        return tf.reduce_mean(tf.abs(outputs[:, 0] - batch["y"]))
"""
CONFIG = """
data: {batch_size: 2}
precision:
  preset: fp16-mixed
  scaling: {kind: static, scale: 1.0}
  layers: {shrink: {compute: float32}}
"""


def run(folder: Path, *overrides: str) -> Any:
    rows = (1, 2, 3, 4, 900, 1, 2, 3, 4, 5, 6, 7)
    overrides = ("trainer.max_epochs=2", "optimizer.lr=1.0e-3", "seed=4", *overrides)
    return run_written(folder, "Products", rows, PRODUCTS, CONFIG, *overrides)


@pytest.mark.parametrize(("response", "steps", "held"), [("lower-lr", 10, 2), ("promote", 11, 1)])
def test_a_recipe_answers_and_goes_on(response: str, steps: int, held: int, tmp_path: Path) -> None:
    _, directory, outcome = run(tmp_path, f"guard.response={response}")
    assert (outcome.status, outcome.steps, outcome.held_steps) == ("completed", steps, held)
    rates = [row["learning_rate"] for row in directory.metrics() if "learning_rate" in row]
    if response == "lower-lr":
        assert rates[-1] == pytest.approx(1e-3 / 4)


def test_a_recipe_goes_back(tmp_path: Path) -> None:
    overrides = ("guard={response: rollback, rollback: {steps: 1}}", "trainer.max_epochs=1")
    _, directory, outcome = run(tmp_path, *overrides)
    assert (outcome.status, outcome.held_steps) == ("completed", 1)
    assert outcome.steps == 4  # of five that were good, one was taken back
    assert not list(directory.checkpoints.glob("rollback-*"))


def test_replay_says_which_remedy_mends_it(tmp_path: Path) -> None:
    loaded, directory, outcome = run(tmp_path)
    assert outcome.status == "failed"
    (folder,) = directory.incidents.iterdir()
    policy = loaded.config.precision
    found = load_backend("tensorflow").replay(
        IncidentFolder.open(folder),
        loaded.config,
        loaded.recipe,
        Remedies(policies=[policy.preset("bf16-mixed")], promote=("big", "head"), device="cpu"),
    )
    assert found.replay.producer.op == found.incident.producer.op
    assert [(t.tried, t.goes_away) for t in found.remedies] == [
        ("policy bf16-mixed", True),
        ("promote big", True),
        ("promote head", False),
        ("device cpu", False),
    ]
    assert found.remedies[2].remains is not None
    assert found.remedies[2].remains.producer.module == "big"


def product() -> Any:
    layers = [L.Dense(4, kernel_initializer=keras.initializers.Constant(200.0), name="big")]
    model = keras.Sequential([keras.Input((4,)), *layers, L.Dense(1, name="head")])
    model.compile(keras.optimizers.Adam(1e-3), loss="mse", metrics=["mae"])
    return model


@pytest.mark.parametrize("generated", [False, True])
def test_an_incident_of_fit_is_replayed_with_a_model_made_anew(generated: bool, tmp_path: Path) -> None:
    policy = {"preset": "fp16-mixed", "scaling": {"kind": "static", "scale": 1.0}}
    model = enforce(product(), policy, incidents=tmp_path)
    x, y = np.full((8, 4), 1.0), np.ones((8, 1))
    x[3] = 500.0

    def batches() -> Any:
        yield x, y

    given = {"x": batches()} if generated else {"x": x, "y": y, "batch_size": 8}
    with pytest.raises(NumericIncident):
        model.fit(**given, shuffle=False, verbose=0)
    found = replay_incident(tmp_path / "step-0", product, policies=["bf16-mixed"], promote=["head"])
    assert found.replay.message == found.incident.message
    assert (found.replay.producer.op, found.replay.producer.module) == ("MatMul", "big")
    assert [r.index for r in found.replay.rows] == [3]
    assert [(t.tried, t.goes_away) for t in found.remedies] == [
        ("policy bf16-mixed", True),
        ("promote head", False),
    ]


def test_the_command_line_says_how_a_model_of_ones_own_is_replayed(tmp_path: Path) -> None:
    model = enforce(product(), "float32", incidents=tmp_path)
    with pytest.raises(NumericIncident):
        model.fit(np.full((8, 4), np.nan), np.ones((8, 1)), verbose=0)
    folder = IncidentFolder.open(tmp_path / "step-0")
    with pytest.raises(CastironError, match=r"castiron.keras.replay_incident\(.*step-0', make\)"):
        load_incident_config(folder)


def test_the_limit_of_a_response_ends_it() -> None:
    model = guarded("rollback", rollback={"steps": 1, "limit": 1})
    with pytest.raises(NumericIncident, match="N516"):
        model.fit(batches(0), Y, batch_size=16, epochs=3, shuffle=False, verbose=0)
