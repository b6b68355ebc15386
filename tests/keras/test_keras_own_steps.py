"""A `train_step` of a model's own that goes wrong: taken back, run again, and its producer named as of any
step: operation, layer, line, phase, operands, rows. Eagerly, as a graph, and compiled by XLA."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from castiron import NumericIncident
from castiron.keras import enforce, replay_incident
from castiron.training.incident import Incident

L = keras.layers
MODES: dict[str, dict[str, Any]] = {
    "graph": {}, "eager": {"run_eagerly": True}, "jit": {"jit_compile": True},
}  # fmt: skip
X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
Y = X.sum(1, keepdims=True)


def x_with(row: int, value: float) -> np.ndarray:
    x = X.copy()
    x[row] = value
    return x


class Tape(keras.Model):
    """A loop of one's own around a tape, with a fault at choice."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.hidden, self.norm = L.Dense(6, name="hidden"), L.BatchNormalization(name="norm")
        self.head = L.Dense(1, name="head")
        self.fault = fault

    def call(self, x: Any, training: bool = False) -> Any:
        h = self.hidden(x)
        if self.fault == "forward":
            h = h + tf.exp(tf.abs(h)) * 1e-9
        return self.head(self.norm(h, training=training))

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            out = self(x, training=True)
            if self.fault == "loss":
                loss = tf.reduce_mean(tf.square(out - y) / tf.where(x[:, :1] > 50, 0.0, 1.0))
            elif self.fault == "backward":
                loss = tf.reduce_mean(tf.sqrt(tf.square(out * tf.where(x[:, :1] > 50, 0.0, 1.0))))
            elif self.fault == "steep":
                loss = tf.reduce_mean(out - y) * 1e30
            else:
                loss = tf.reduce_mean(tf.square(out - y))
        gradients = tape.gradient(loss, [v.value for v in self.trainable_variables])
        if self.fault == "clip":
            squares = [tf.reduce_sum(g * g) for g in gradients]
            gradients = [g / tf.sqrt(tf.add_n(squares)) * 0.1 for g in gradients]
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


def incident_of(
    model: Any, mode: str, x: Any, *, first: Any = None, target: Any = Y, **options: Any
) -> Incident:
    """What is said of a bad step behind a good one; nothing of it stays."""
    keras.utils.set_random_seed(3)
    if not model.built:
        model(X)
    policy = options.pop("policy", "float32")
    enforce(model, policy, **{k: options.pop(k) for k in ("incidents",) if k in options})
    model.compile(**({"optimizer": keras.optimizers.Adam(0.01)} | options), **MODES[mode])
    if first is not None:
        model.fit(first, target, batch_size=8, verbose=0)
    before = state(model)
    with pytest.raises(NumericIncident) as e:
        model.fit(x, target, batch_size=8, shuffle=False, verbose=0)
    assert state(model)[: len(before)] == before
    incident: Incident = e.value.incident
    return incident


def state(model: Any) -> list[bytes]:
    core = model.castiron.core
    held = [*core.updates.variables(), *(v._value for v in core.others)]
    own = [v for v in model.variables if "seed" not in v.path]
    return [v.numpy().tobytes() for v in (*(v._value for v in own), *held)]


FAULTS: dict[str, tuple[float, dict[str, Any]]] = {
    "forward": (900.0, {"code": "N501", "phase": "forward", "op": "Exp", "module": "", "line": "tf.exp("}),
    "loss": (60.0, {"code": "N504", "phase": "loss", "op": "RealDiv", "module": None, "line": "/ tf.where("}),
    "backward": (60.0, {"code": "N504", "phase": "backward", "op": "SqrtGrad", "line": "tf.sqrt("}),
    "data": (np.nan, {"code": "N507", "phase": "data", "parameter": "0"}),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_loop_around_a_tape(fault: str, mode: str) -> None:
    value, expected = FAULTS[fault]
    found = incident_of(Tape(fault), mode, x_with(5, value), first=X)
    assert (found.code, found.phase) == (expected["code"], expected["phase"])
    assert (found.step, found.reproduced, [r.index for r in found.rows]) == (1, True, [5])
    assert found.producer.op == expected.get("op")
    assert found.producer.parameter == expected.get("parameter")
    if "module" in expected:
        assert found.producer.module == expected["module"]
    if "line" in expected:
        assert found.producer.source is not None
        assert expected["line"] in found.producer.source.text
        assert found.results
    assert found.operands
    assert found.remedy
    assert "parameters" in found.seen


def test_what_is_done_to_gradients_before_they_are_applied() -> None:
    model = Tape("clip")
    model(X)
    model.head.kernel.assign(model.head.kernel * 0)
    found = incident_of(model, "graph", X * 0, target=Y * 0, optimizer=keras.optimizers.SGD(0.1))
    assert (found.code, found.phase, found.producer.op) == ("N502", "optimizer", "RealDiv")
    assert found.producer.source is not None
    assert "tf.add_n(squares)" in found.producer.source.text


class Gan(keras.Model):
    """Two models, two optimizers, a gradient penalty; the noise comes with the batch."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.generator = keras.Sequential([keras.Input((4,)), L.Dense(6, name="g1"), L.Dense(4, name="g2")])
        self.critic = keras.Sequential(
            [keras.Input((4,)), L.Dense(6, "relu", name="c1"), L.Dense(1, name="c2")]
        )
        self.optimizers = {"generator": keras.optimizers.Adam(0.01), "critic": keras.optimizers.Adam(0.01)}
        self.loss_tracker = keras.metrics.Mean(name="c_loss")
        self.steps = tf.Variable(0)
        self.fault = fault
        self.built = True
        for name, optimizer in self.optimizers.items():
            optimizer.build(getattr(self, name).trainable_variables)

    def call(self, x: Any) -> Any:
        return self.critic(self.generator(x))

    def penalty(self, real: Any, fake: Any) -> Any:
        mixed = 0.5 * real + 0.5 * fake
        with tf.GradientTape() as inner:
            inner.watch(mixed)
            scores = self.critic(mixed)
        slope = inner.gradient(scores, mixed)
        norm = tf.reduce_sum(tf.square(slope), 1)
        return tf.reduce_mean(tf.square(tf.sqrt(norm if self.fault == "penalty" else norm + 1e-12) - 1.0))

    def train_step(self, data: Any) -> dict[str, Any]:
        noise, real = data
        self.steps.assign_add(1)
        with tf.GradientTape() as tape:
            fake = self.generator(noise)
            both = tf.concat([fake, real], 0)
            if self.fault == "between":
                both = tf.math.log(tf.abs(both) - tf.cast(tf.reduce_any(noise > 50), tf.float32) * 1e6)
            scores = self.critic(both)
            c_loss = tf.reduce_mean(scores[:8]) - tf.reduce_mean(scores[8:]) + self.penalty(real, fake)
            if self.fault == "critic loss":
                c_loss = c_loss + tf.reduce_mean(tf.math.log(1.0 - tf.math.sigmoid(scores[:8])))
        self.apply("critic", tape.gradient(c_loss, self.critic.trainable_variables))
        with tf.GradientTape() as tape:
            made = self.critic(self.generator(noise))
            g_loss = -tf.reduce_mean(made)
            if self.fault == "generator loss":
                g_loss = g_loss + tf.reduce_mean(tf.exp(tf.abs(made)))
        self.apply("generator", tape.gradient(g_loss, self.generator.trainable_variables))
        self.loss_tracker.update_state(c_loss)
        return {"c_loss": self.loss_tracker.result(), "g_loss": g_loss}

    def apply(self, name: str, gradients: Any) -> None:
        self.optimizers[name].apply(gradients, getattr(self, name).trainable_variables)


def gan(fault: str) -> Gan:
    keras.utils.set_random_seed(2)
    model = Gan(fault)
    if fault == "penalty":  # relu lets nothing through: the slope is 0
        model.critic.get_layer("c1").bias.assign(np.full(6, -1e3, "float32"))
    return model


GAN: dict[str, tuple[float, dict[str, Any]]] = {
    "between": (60.0, {"code": "N504", "phase": "forward", "op": "Log", "line": "both = tf.math.log"}),
    "critic loss": (1e4, {"code": "N504", "phase": "loss", "op": "Log", "line": "tf.math.log(1.0 -"}),
    "generator loss": (1e4, {"code": "N501", "phase": "loss", "op": "Exp", "line": "tf.exp("}),
    "penalty": (1.0, {"code": "N504", "phase": "backward", "op": "SqrtGrad", "line": "tf.sqrt("}),
}


@pytest.mark.parametrize(("fault", "mode"), [*((f, "graph") for f in GAN), ("critic loss", "jit")])
def test_two_models_and_two_optimizers(fault: str, mode: str) -> None:
    value, expected = GAN[fault]
    model = gan(fault)
    if fault == "critic loss":
        model.critic.get_layer("c2").kernel.assign(tf.abs(model.critic.get_layer("c2").kernel))
        model.critic.get_layer("c1").kernel.assign(tf.abs(model.critic.get_layer("c1").kernel))
        model.generator.get_layer("g1").kernel.assign(tf.abs(model.generator.get_layer("g1").kernel))
        model.generator.get_layer("g2").kernel.assign(tf.abs(model.generator.get_layer("g2").kernel))
    found = incident_of(model, mode, x_with(5, value), target=X)
    assert (found.code, found.phase, found.producer.op) == (
        expected["code"], expected["phase"], expected["op"],
    )  # fmt: skip
    assert found.producer.source is not None
    assert expected["line"] in found.producer.source.text
    assert found.producer.module is None
    assert int(model.steps) == 0


class Priced(keras.Model):
    """Keras's own train_step, and a loss of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.head = L.Dense(1, name="head")

    def call(self, x: Any) -> Any:
        return self.head(x)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: Any = True,
    ) -> Any:
        return tf.reduce_mean(tf.abs(y_pred - y) / tf.where(x[:, :1] > 50, 0.0, 1.0))


class Augmenting(Priced):
    """A train_step that changes the batch, and leaves the rest to Keras."""

    def train_step(self, data: Any) -> Any:
        x, y = data
        return super().train_step((x * 1.0, y))


@pytest.mark.parametrize(("make", "mode"), [(Priced, "graph"), (Priced, "jit"), (Augmenting, "graph")])
def test_a_loss_of_the_models_own(make: Any, mode: str) -> None:
    found = incident_of(make(), mode, x_with(2, 60.0))
    assert (found.code, found.phase, found.producer.op) == ("N504", "loss", "RealDiv")
    assert found.producer.source is not None
    assert "tf.abs(y_pred - y) /" in found.producer.source.text
    assert [r.index for r in found.rows] == [2]


def test_what_an_optimizer_makes_of_finite_gradients() -> None:
    model = Tape("steep")
    policy = {"preset": "float32", "guard": {"watch": ["loss", "gradients", "buffers", "optimizer"]}}
    found = incident_of(model, "graph", X, policy=policy)
    assert (found.code, found.phase, found.event) == ("N508", "optimizer", "optimizer")
    assert found.producer.op == "Adam"
    assert found.message.startswith("Adam made 'adam")
    assert "of gradients that are: " in found.message
    assert found.producer.source is not None
    assert "self.optimizer.apply(" in found.producer.source.text
    assert "optimizer" in found.seen
    assert "parameters" not in found.seen


class Noisy(Tape):
    """Noise that nobody can draw again, and a step that only a graph can run."""

    def train_step(self, data: Any) -> dict[str, Any]:
        if self.fault == "graph only" and tf.executing_eagerly():
            raise TypeError("this step needs a graph")
        logs = super().train_step(data)
        noise = tf.random.normal([])
        bad = noise < 1e9 if not tf.executing_eagerly() else noise > 1e9
        return {"loss": logs["loss"] + tf.where(bad, np.float32(np.nan), 0.0)}


def test_what_cannot_be_run_again_says_why() -> None:
    found = incident_of(Noisy(), "graph", X)
    assert (found.code, found.reproduced) == ("N509", False)
    assert "RandomStandardNormal at " in found.message
    assert "draws random numbers that cannot be drawn again" in found.message
    assert "keras.random.SeedGenerator" in found.remedy
    found = incident_of(Noisy("graph only"), "graph", X)
    assert (found.code, found.reproduced) == ("N509", False)
    assert (
        "Noisy.train_step left; it was not run again: run eagerly, it raises TypeError: this step needs a"
        in (found.message)
    )


def test_its_incident_is_run_again_with_a_model_made_anew(tmp_path: Any) -> None:
    def make() -> Any:
        model = gan("generator loss")
        model.compile(keras.optimizers.Adam(0.01))
        return model

    found = incident_of(gan("generator loss"), "graph", x_with(5, 1e4), target=X, incidents=tmp_path)
    again = replay_incident(tmp_path / "step-0", make)
    assert (again.replay.message, again.replay.producer) == (found.message, found.producer)
    assert (again.replay.rows, again.replay.operands) == (found.rows, found.operands)
