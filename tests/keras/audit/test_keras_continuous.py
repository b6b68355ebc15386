"""The audit of a Keras model at work: graphs are read as they are compiled, the live model now and then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from castiron.diagnostics import AuditError
from castiron.keras import enforce
from castiron.training import load_config
from castiron.training.auditing import verify
from castiron.training.launch import train

L = keras.layers
X = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
Y = np.zeros((64, 4), "float32")
FILE = str(Path(__file__))


class Faulty(L.Layer):
    """Computes in float64 where its `when` says so, as a graph is built."""

    def __init__(self, when=lambda training: True):
        super().__init__(name="faulty")
        self.when = when

    def call(self, x, training=False):
        if self.when(training):
            x = keras.ops.cast(keras.ops.multiply(x, np.ones(6)), x.dtype)  # fault
        return x


LINE = next(n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "# fault" in text)


def net(*more: Any) -> Any:
    return keras.Sequential(
        [keras.Input((8,)), L.Dense(6, "relu"), *more, L.BatchNormalization(), L.Dense(4)]
    )


def told(model: Any) -> list[tuple[str, int | None]]:
    return [(f.code, f.place.line) for f in model.castiron.findings if f.code[:2] in ("F3", "L2")]


def policy(name: str = "float32", **enforce: Any) -> dict[str, Any]:
    return {"preset": name, "enforce": enforce}


@pytest.mark.parametrize("how", [{}, {"jit_compile": True}, {"run_eagerly": True}], ids=str)
def test_strict_stops_fit_before_the_first_step(how: dict[str, bool]) -> None:
    model = enforce(net(Faulty()))
    model.compile("adam", "mse", **how)
    before = [v.numpy() for v in model.variables]
    for _ in range(2):
        with pytest.raises(AuditError, match="F301 multiply meets float32 with float64") as caught:
            model.fit(X, Y, verbose=0)
        assert (caught.value.findings[0].place.file, caught.value.findings[0].place.line) == (FILE, LINE)
    assert all((a == v.numpy()).all() for a, v in zip(before, model.variables, strict=False))
    assert model.castiron.committed == 0


def test_warn_goes_on_and_off_reads_nothing(tmp_path: Path) -> None:
    model = enforce(net(Faulty()), policy(level="warn"), health=tmp_path)
    model.compile("adam", "mse")
    model.fit(X, Y, verbose=0)
    assert told(model) == [("F301", LINE)]
    assert not verify(tmp_path).ok
    model = enforce(net(Faulty()), policy(level="off"))
    model.compile("adam", "mse")
    model.fit(X, Y, verbose=0)
    assert (told(model), model.castiron.audit) == ([], None)


@pytest.mark.parametrize("name", ["float32", "bf16-mixed", "mixed_float16"])
def test_nothing_is_said_of_a_clean_model_at_work(name: str) -> None:
    layers = [keras.Input((10, 8)), L.LSTM(6), L.LayerNormalization(), L.Dropout(0.1), L.Dense(4, "softmax")]
    model = enforce(keras.Sequential(layers), policy(name, every=4))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], steps_per_execution=2)
    x, y = np.ones((96, 10, 8), "float32"), np.zeros(96, "int64")
    model.fit(x, y, batch_size=8, verbose=0, validation_data=(x, y))
    model.predict(x, verbose=0)
    report = model.castiron.audit
    assert told(model) == []
    assert [str(f) for f in (*report.findings, *report.waived)] == []
    assert set(report.formats) == {"forward", "loss", "backward"}
    assert max(report.share(), key=report.share().__getitem__) == {
        "float32": "float32", "bf16-mixed": "bfloat16", "mixed_float16": "float16"
    }[name]  # fmt: skip
    assert {10} <= set(report.steps) <= {1, 2, 10}


def test_a_departure_that_comes_with_a_later_graph_is_told_once() -> None:
    late = [False]
    model = enforce(net(Faulty(lambda training: late[0])))
    model.compile("adam", "mse")
    for rows in (16, 16, 8):
        model.train_on_batch(X[:rows], Y[:rows])
    assert told(model) == []
    late[0] = True
    steps = model.castiron.audit.steps
    for rows in (16, 8):
        model.train_on_batch(X[:rows], Y[:rows])
    assert (told(model), model.castiron.audit.steps) == ([], steps)  # nothing was compiled, nothing was read
    for _ in range(2):
        model.train_on_batch({"input": X[:16]}["input"].astype("float64"), Y[:16])
        model.make_train_function(force=True)
        model.train_on_batch(X[:16], Y[:16])
    assert told(model) == [("F301", LINE)]
    assert not model.castiron.audit.ok
    assert len(model.castiron.audit.steps) > len(steps)


def test_the_live_model_is_held_against_the_plan() -> None:
    model = enforce(net(), policy(every=4))
    model.compile("adam", "mse")

    class Changes(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 11:
                keras.config.set_floatx("float64")
                model.layers[0].dtype_policy = keras.DTypePolicy("mixed_bfloat16")

    model.fit(X, Y, batch_size=2, verbose=0, callbacks=[Changes()])
    assert keras.config.floatx() == "float32"
    found = {f.code: f for f in model.castiron.findings if f.code in ("F330", "L205")}
    assert set(found) == {"F330", "L205"}
    assert "compute bfloat16" in str(found["L205"])
    assert [s for s in model.castiron.audit.steps if s >= 10] == [10, 14, 18, 22, 26, 30]
    assert len(model.castiron.audit.findings) == 2


def test_what_only_evaluation_and_inference_do_is_told() -> None:
    model = enforce(net(Faulty(lambda training: not training)))
    model.compile("adam", "mse")
    model.fit(X, Y, verbose=0, validation_data=(X, Y))
    model.predict(X, verbose=0)
    assert told(model) == [("F301", LINE)]
    assert [f.evidence["step"] for f in model.castiron.audit.findings] == ["evaluation"]


def test_a_train_step_of_the_models_own_is_read() -> None:
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = L.Dense(4)

        def call(self, x):
            return self.head(x)

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                error = self(x) - y
                loss = tf.reduce_mean(tf.cast(tf.square(tf.cast(error, tf.float64)), tf.float32))  # own fault
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {"loss": loss}

    model = Own()
    model(X[:1])
    enforce(model, policy(level="warn"))
    model.compile("adam")
    model.fit(X, Y, verbose=0)
    ((code, line),) = told(model)
    assert code == "F302"
    assert "# own fault" in Path(__file__).read_text().splitlines()[(line or 0) - 1]


RECIPE = """
import keras
import numpy as np
from castiron_recipes import LSTMSentiment


class Late(keras.layers.Layer):
    traced = 0

    def call(self, x, training=False):
        Late.traced += bool(training)
        if Late.traced > 1:
            x = keras.ops.cast(keras.ops.multiply(x, np.ones(2)), x.dtype)
        return x


class Model(keras.Model):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.late = inner, Late()
        self.built = True

    def call(self, ids, lengths, training=False):
        return self.late(self.inner(ids, lengths, training=training), training=training)


class Faulty(LSTMSentiment):
    name = "late"

    def model(self):
        return Model(super().model())
"""


class Heard:
    verbosity = "quiet"

    def __init__(self) -> None:
        self.found: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None

    def findings(self, findings: Any) -> None:
        self.found.extend(findings)


def test_a_recipe_whose_compiled_step_departs_from_the_audited_one(tmp_path: Path) -> None:
    file = tmp_path / "my_recipe.py"
    file.write_text(RECIPE)
    loaded = load_config(
        f"{file}:Faulty",
        ["backend=tensorflow", "model.embedding=8", "model.hidden=8", "model.text.max_vocabulary=200",
         "trainer.limit_validation=1", "trainer.limit_test=1", "trainer.max_steps=12", "audit.every=2",
         "trainer.threads=1", "model.bidirectional=false"],
    )  # fmt: skip
    heard: Any = Heard()
    run, outcome = train(loaded, runs=tmp_path, name="run", reporter=heard)
    assert outcome.status == "completed"
    assert [(f.code, f.place.line) for f in heard.found if f.code[0] == "F"] == [("F301", 13)]
    report = json.loads((run.path / "audit.json").read_text())
    assert {10, 12} <= set(report["steps"])
    assert not verify(run.path).ok
