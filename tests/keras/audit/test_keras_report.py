"""The report of a Keras model's audit, and the doors that lead to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import castiron
from castiron.diagnostics import AuditError
from castiron.keras.audit import audit
from castiron.policy import PrecisionPolicy
from castiron.training import RunDirectory, load_config
from castiron.training.auditing import audit_function, verify
from castiron.training.backend import Job, Silent, load_backend

L = keras.layers
X = np.random.default_rng(0).normal(size=(4, 10, 8)).astype("float32")


def lstm():
    return keras.Sequential([keras.Input((10, 8)), L.LSTM(6), L.Dense(3)])


class Faulty(L.Layer):
    def call(self, x, training=False):
        return x if training else keras.ops.cast(keras.ops.tanh(keras.ops.cast(x, "float16")), "float32")


def faulty():
    return keras.Sequential([keras.Input((10, 8)), L.LSTM(6), Faulty(), L.Dense(3)])


def test_flops_are_those_of_all_steps_of_a_loop() -> None:
    report = castiron.audit(lstm(), X, "bf16-mixed")
    # 10 time steps of 4 rows: 4 gates of 6 units, 8 inputs and 6 states each; and the head.
    products = 2 * 4 * 10 * (8 + 6) * 4 * 6 + 2 * 4 * 6 * 3
    forward = report.formats["forward"]["bfloat16"].flops
    assert products < forward < 1.3 * products
    assert report.formats["backward"]["bfloat16"].flops > 1.5 * products
    assert (report.ok, report.traced, report.layers) == (True, "graph", 3)
    assert "passed" in report.headline()
    assert [f.code for f in report.findings] == ["F328"]


def test_what_only_evaluation_does_is_found() -> None:
    (found,) = [f for f in audit(faulty(), X).findings if f.code == "F304"]
    assert found.evidence["step"] == "evaluation"
    assert found.place.module == "faulty" or str(found.place.module).startswith("faulty")
    assert "cast puts float32 into float16, which is narrower than anything declared there" in str(found)


def test_strict_and_waived() -> None:
    with pytest.raises(AuditError, match="F304"):
        castiron.assert_precision(faulty(), X)
    policy = {"preset": "float32", "enforce": {"ignore": ["F304"]}}
    report = audit(faulty(), X, policy)
    assert report.ok
    assert [f.code for f in report.waived] == ["F304"]


def test_a_model_under_enforce_has_its_plan() -> None:
    from castiron.keras import enforce

    model = enforce(lstm(), "bf16-mixed")
    model.compile("adam", "mse")
    report = audit(model, X, targets=np.zeros((4, 3), "float32"))
    assert report.policy.startswith("p=float32,c=bfloat16")
    assert [f"{f.code} {f}" for f in report.findings] == []
    assert model.fit(X, np.zeros((4, 3), "float32"), verbose=0)


def test_any_model_by_its_function() -> None:
    report = audit_function(lstm, ["float32[4,10,8]"], PrecisionPolicy.preset("float32"))
    assert (report.ok, report.traced) == (True, "graph")
    ids = keras.Sequential([keras.Input((5,), dtype="int64"), L.Embedding(50, 4)])
    assert audit_function(lambda: ids, ["int64[4,5]<50"], PrecisionPolicy.preset("float32")).ok


def test_floatx_left_on_float64() -> None:
    def loss(outputs, batch):
        return keras.losses.MeanSquaredError()(tf.zeros((4, 3)), outputs)

    model = lstm()
    keras.config.set_floatx("float64")
    try:
        report = audit(model, X, loss=loss)
    finally:
        keras.config.set_floatx("float32")
    codes = {f.code for f in report.errors}
    assert {"F330", "F310"} <= codes
    assert "keras.config.floatx() is float64" in str(report.errors)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    loaded = load_config(
        "lstm-sentiment",
        ["backend=tensorflow", "model.embedding=8", "model.hidden=8", "model.bidirectional=false",
         "trainer.max_steps=1", "trainer.limit_validation=1", "trainer.limit_test=1", "precision=bf16-mixed"],
    )  # fmt: skip
    (tmp_path / "config.yaml").write_text("recipe: lstm-sentiment\n")
    run = RunDirectory(tmp_path)
    yield Job(config=loaded.config, recipe=loaded.recipe, run=run, reporter=Silent())
    run.close()


def test_a_recipe_is_audited_before_its_first_step(tmp_path: Path, job: Job) -> None:
    load_backend("tensorflow").fit(job)
    report = verify(tmp_path)
    assert report.ok
    assert list(report.formats) == ["forward", "loss", "backward"]
    assert json.loads((tmp_path / "audit.json").read_text())["share_of_flops"]["bfloat16"] > 0.9


def test_strict_stops_a_recipe_before_its_first_step(
    tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = audit(faulty(), X)
    monkeypatch.setattr("castiron.keras.auditing.audit_module", lambda module, batch: found)
    with pytest.raises(AuditError, match="F304"):
        load_backend("tensorflow").fit(job)
    assert not verify(tmp_path).ok
    assert not (tmp_path / "checkpoints").exists() or not list((tmp_path / "checkpoints").iterdir())
