"""Health of whole steps in TensorFlow: what is measured, held against the reference, and what is said."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from castiron.health.dynamics import update
from castiron.health.snapshot import KINDS, Snapshot
from castiron.health.statistics import measure
from castiron.keras.health.monitor import HealthMonitor
from castiron.keras.health.watch import Watch
from castiron.keras.modules import describe
from castiron.keras.optimizers import BiasCorrectedAdam
from castiron.keras.precision import apply
from castiron.keras.scaling import make_scaler
from castiron.keras.step import StepCore
from castiron.keras.updates import Updates
from castiron.policy import PrecisionPolicy, resolve

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 12, 4)).astype("float32")
Y = RNG.normal(size=(8, 1)).astype("float32")


class Training:
    """A bare training under a policy, every step measured."""

    def __init__(self, layers: list[Any], policy: Any = "float32", optimizer: Any = None, gain: float = 1.0):
        self.policy = PrecisionPolicy.model_validate(
            {**({"preset": policy} if isinstance(policy, str) else policy), "health": {"every": 1}}
        )
        self.model = keras.Sequential(layers)
        plan, _ = resolve(self.policy, describe(self.model))
        apply(self.model, plan)
        optimizer = optimizer or BiasCorrectedAdam(0.01)
        updates = Updates(optimizer, self.model.trainable_variables, self.policy)
        self.core = StepCore(self.model, updates, self.policy, make_scaler(self.policy.scaling))
        self.monitor = HealthMonitor(self.core, self.policy)
        self.gain, self.steps, self.compiled = gain, 0, {}

    def forward(self, batch: Any) -> Any:
        y = tf.cast(self.model(batch["x"], training=True), tf.float32)
        return self.gain * tf.reduce_mean(tf.square(y - batch["y"])), None

    def step(self, watch: Watch | None = None, jit: bool = False) -> Snapshot:
        watch = watch or self.monitor.watch(self.steps)
        assert watch is not None
        if watch not in self.compiled:

            def run(batch: Any) -> Any:
                with watch.tracing():
                    result = self.core.run(self.forward, [batch])
                return result.committed, watch.outputs()

            self.compiled[watch] = tf.function(run, autograph=False, jit_compile=jit or None)
        committed, given = self.compiled[watch]({"x": tf.constant(X), "y": tf.constant(Y)})
        assert bool(committed)
        self.steps += 1
        return self.monitor.committed(watch, given, self.steps, 0.01, 0)


def lstm() -> list[Any]:
    return [
        keras.Input((12, 4)), L.LSTM(5, return_sequences=True, name="lstm"), L.Flatten(),
        L.Dense(6, "relu", name="hidden"), L.Dense(1, name="head"),
    ]  # fmt: skip


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_a_step_is_measured_as_the_reference_has_it(jit: bool) -> None:
    training = Training(lstm())
    before = {v.path: v.numpy() for v in training.model.trainable_variables}
    with tf.GradientTape() as tape:
        loss, _ = training.forward({"x": X, "y": Y})
    values = [v._value for v in training.model.trainable_variables]
    gradients = [g.numpy() for g in tape.gradient(loss, values)]
    everything = Watch(training.core, formats=("float16",))
    snapshot = training.step(everything, jit)
    assert {kind for kind, _ in snapshot.groups} == set(KINDS)
    assert {layer for kind, layer in snapshot.groups if kind == "activations"} == {"lstm", "hidden", "head"}
    assert {layer for kind, layer in snapshot.groups if kind == "parameters"} == {
        "lstm.cell",
        "hidden",
        "head",
    }

    ours = snapshot.groups["gradients", "head"]
    reference = measure(np.concatenate([g.ravel() for g in gradients[-2:]]), formats=("float16",))
    assert ours.largest == pytest.approx(reference.largest, rel=1e-4)
    assert (ours.size, ours.zeros) == (reference.size, reference.zeros)
    assert np.abs(ours.exponents - reference.exponents).sum() <= 2
    assert ours.what_if["float16"].scale == reference.what_if["float16"].scale

    head = training.model.get_layer("head")
    after = np.concatenate([v.numpy().ravel() for v in head.trainable_variables])
    assert snapshot.groups["parameters", "head"].largest == pytest.approx(np.abs(after).max())
    was = np.concatenate([before[v.path].ravel() for v in head.trainable_variables])
    exact = update(was, after - was, "float32")
    found = snapshot.updates["head"]
    assert found.update.wanted == exact.wanted
    assert found.update.ratio == pytest.approx(exact.ratio, rel=1e-4)
    assert (found.dtype, found.rate) == ("float32", 0.01)
    assert len(snapshot.levels["lstm"]) == 12
    assert snapshot.dead["hidden"][1] == 6
    assert snapshot.moments["head"].moving == 7


def test_most_measurements_are_of_peaks() -> None:
    training = Training(lstm(), "bf16-mixed")
    snapshots = [training.step() for _ in range(5)]
    assert [bool(s.groups) for s in snapshots] == [True, False, True, False, True]
    assert [s.full for s in snapshots] == [False, False, True, False, False]
    assert snapshots[1].peaks["activations", "hidden"][0] == "bfloat16"
    assert set(snapshots[0].groups) > {("activations", "lstm"), ("activation gradients", "lstm")}
    assert training.monitor.last is snapshots[-1]
    assert training.monitor.news() == []


def test_measuring_does_not_change_the_training() -> None:
    one, other = Training(lstm()), Training(lstm())
    other.model.set_weights(one.model.get_weights())
    everything = Watch(one.core)
    for _ in range(3):
        one.step(everything)
        other.core.run(other.forward, [{"x": tf.constant(X), "y": tf.constant(Y)}])
    for a, b in zip(one.model.get_weights(), other.model.get_weights(), strict=True):
        assert np.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_lost_updates_are_told() -> None:
    policy = {"preset": "bf16-true", "updates": {"master": None, "rounding": "nearest"}, "state": "float32"}
    training = Training(lstm(), policy, keras.optimizers.SGD(1e-5))
    said = [f for _ in range(24) for f in (training.step(), *training.monitor.news())[1:]]
    assert "N521" in {f.code for f in said}, said


def test_moments_that_underflow() -> None:
    training = Training(lstm(), gain=1e-25)
    snapshot = training.step(Watch(training.core))
    assert snapshot.moments["head"].underflow_share > 0.9
