"""The plan, applied to Keras models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from castiron.diagnostics import PlanError
from castiron.keras.modules import describe, variables, walk
from castiron.keras.precision import apply, departures

L = keras.layers
Applied = Callable[..., Any]


def seen_dtypes(model: Any, *inputs: Any) -> dict[str, tuple[str, str]]:
    """Path → (format of the variables as the layer reads them or its input, format it hands on)."""
    seen: dict[str, tuple[str, str]] = {}
    for path, layer in walk(model):
        call = layer.call

        def spy(*args: Any, _call: Any = call, _path: str = path, **kwargs: Any) -> Any:
            out = _call(*args, **kwargs)
            first = next((t for t in keras.tree.flatten(args) if tf.is_tensor(t)), None)
            last = keras.tree.flatten(out)[0]
            seen[_path] = (first.dtype.name if first is not None else "", last.dtype.name)
            return out

        layer.__dict__["call"] = spy
    model(*inputs)
    return seen


def classifier() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((None,)),
            L.Embedding(10, 4, name="embedding"),
            L.Bidirectional(L.LSTM(3), name="encoder"),
            L.BatchNormalization(name="norm"),
            L.Dense(8, name="hidden"),
            L.Dense(2, activation="softmax", name="head"),
        ]
    )


IDS = np.array([[1, 2, 3]])


def test_bf16_mixed_computes_and_hands_on_as_planned(applied: Applied) -> None:
    model = classifier()
    applied(model, "bf16-mixed")
    seen = seen_dtypes(model, IDS)
    assert seen["embedding"] == ("int64", "bfloat16")
    assert seen["encoder.forward_layer"] == ("bfloat16", "bfloat16")
    assert seen["encoder.forward_layer.cell"] == ("bfloat16", "bfloat16")
    assert seen["norm"] == ("float32", "bfloat16")
    assert seen["hidden"] == ("bfloat16", "bfloat16")
    assert seen["head"] == ("bfloat16", "float32")  # its softmax is an island
    assert {v._value.dtype.name for v in variables(model).values()} == {"float32"}


@pytest.mark.parametrize(
    ("preset", "stored", "buffers"),
    [
        ("bf16-true", "bfloat16", "float32"),
        ("float64", "float64", "float64"),
        ("fp16-mixed", "float32", "float32"),
    ],
)
def test_variables_and_buffers_get_their_formats(
    applied: Applied, preset: str, stored: str, buffers: str
) -> None:
    model = classifier()
    applied(model, preset)
    assert model.get_layer("hidden").kernel._value.dtype.name == stored
    assert model.get_layer("norm").moving_mean._value.dtype.name == buffers
    assert np.isfinite(model(IDS).numpy().astype("float64")).all()


def test_float64_data_reach_a_float64_model_whole(applied: Applied) -> None:
    model = keras.Sequential([keras.Input((1,)), L.Dense(1, use_bias=False, name="dense")])
    model.get_layer("dense").kernel.assign([[1.0]])
    applied(model, "float64")
    x = np.array([[1.0 + 2.0**-40]])
    assert model(x).numpy()[0, 0] == x[0, 0]
    assert model.predict(tf.data.Dataset.from_tensors(x), verbose=0)[0, 0] == x[0, 0]


def test_large_ids_keep_their_value_through_an_input_without_dtype(applied: Applied) -> None:
    model = keras.Sequential([keras.Input((1,)), L.Embedding(3000, 1, name="e")])
    table = np.arange(3000, dtype="float32")[:, None]
    model.get_layer("e").embeddings.assign(table)
    applied(model, "bf16-mixed", layers={"e": {"output": "float32"}})
    assert model(np.array([[2909]])).numpy().item() == 2909.0  # Keras under mixed_bfloat16: 2912


def test_a_layer_rule_keeps_a_layer_wide(applied: Applied) -> None:
    model = classifier()
    applied(model, "bf16-mixed", layers={"hidden": {"compute": "float32"}, "encoder": {"compute": "float32"}})
    seen = seen_dtypes(model, IDS)
    assert seen["hidden"] == ("float32", "float32")
    assert seen["encoder.backward_layer.cell"] == ("float32", "float32")
    assert seen["head"][0] == "bfloat16"


def test_a_rule_may_widen_only_the_output(applied: Applied) -> None:
    model = classifier()
    applied(model, "bf16-mixed", layers={"hidden": {"output": "float32"}})
    assert seen_dtypes(model, IDS)["hidden"] == ("bfloat16", "float32")


def test_attention_is_narrow_and_its_softmax_wide(applied: Applied) -> None:
    x = keras.Input((3, 8))
    y = L.MultiHeadAttention(2, 4, name="mha")(x, x)
    model = keras.Model(x, L.Attention(name="dot")([y, x]))
    applied(model, "bf16-mixed")
    mha = model.get_layer("mha")
    boundary, ran = mha._softmax.call, []
    mha._softmax.__dict__["call"] = lambda *a, **k: ran.append(boundary(*a, **k)) or ran[-1]
    mha(np.ones((2, 3, 8), "float32"), np.ones((2, 3, 8), "float32"), return_attention_scores=True)
    assert [t.dtype.name for t in ran] == ["bfloat16"]
    assert boundary.inputs == "float32"
    assert model.get_layer("dot").call.scores == "float32"
    assert model(np.ones((2, 3, 8), "float32")).dtype == tf.bfloat16


@pytest.mark.parametrize("preset", ["bf16-mixed", "fp16-mixed", "bf16-true"])
@pytest.mark.parametrize("make", [L.LSTM, L.GRU, L.SimpleRNN])
def test_stateful_recurrent_layers_keep_one_state_format(applied: Applied, preset: str, make: Any) -> None:
    model = keras.Sequential([keras.Input(batch_shape=(2, 3, 4)), make(5, stateful=True, name="rnn")])
    applied(model, preset)
    x = np.ones((2, 3, 4), "float32")
    first, second = (np.asarray(model(x), "float64") for _ in range(2))
    assert not np.array_equal(first, second)
    assert {v._value.dtype.name for v in model.get_layer("rnn").states} == {"float32"}


def test_a_subclassed_model_with_variables_of_its_own(applied: Applied) -> None:
    class Net(keras.Model):
        def build(self, shape: Any) -> None:
            self.w = self.add_weight(shape=(shape[-1], 2), name="w")
            self.built = True

        def call(self, x: Any) -> Any:
            return tf.matmul(x, self.w)

    model = Net()
    model(np.ones((1, 3), "float32"))
    applied(model, "bf16-mixed")
    assert model(np.ones((1, 3), "float32")).dtype == tf.bfloat16


def test_the_global_policy_stays_as_it_is_and_a_model_built_under_another_is_planned_anew(
    applied: Applied,
) -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = keras.Sequential([keras.Input((4,)), L.Dense(2, name="d")])
    finally:
        keras.config.set_dtype_policy("float32")
    applied(model, "float32")
    assert model(np.ones((1, 4), "float32")).dtype == tf.float32


def test_a_built_optimizer_goes_on_with_the_same_variables(applied: Applied) -> None:
    model = keras.Sequential([keras.Input((4,)), L.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    x, y = np.ones((8, 4), "float32"), np.ones((8, 1), "float32")
    model.fit(x, y, verbose=0)
    before = model.get_weights()
    applied(model, "float64")
    model.fit(x, y, verbose=0)
    assert not np.array_equal(before[0], model.get_weights()[0])
    assert model.get_weights()[0].dtype == np.float64


def test_values_that_do_not_fit_are_refused_before_anything_changes(
    plan_of: Callable[..., Any],
) -> None:
    model = keras.Sequential([keras.Input((2,)), L.Dense(1, name="d")])
    model.get_layer("d").kernel.assign([[1e6], [1.0]])
    with pytest.raises(PlanError, match=r"L206 1 of 2 values of variable 'd.kernel' do not fit into float16"):
        apply(model, plan_of(model, "fp16-true"))
    assert model.get_layer("d").kernel._value.dtype == tf.float32


def test_departures_name_the_variable_and_the_layer(plan_of: Callable[..., Any]) -> None:
    model = keras.Sequential([keras.Input((2,)), L.Dense(1, name="d")])
    plan = plan_of(model, "bf16-true")
    apply(model, plan)
    assert departures(model, plan) == []
    model.get_layer("d").dtype_policy = "float32"
    assert next(str(f) for f in departures(model, plan)).startswith(
        "L205 layer 'd' does not compute as planned. Expected compute bfloat16. Received compute float32"
    )


def test_the_plan_of_another_model_is_refused(plan_of: Callable[..., Any]) -> None:
    plan = plan_of(keras.Sequential([keras.Input((2,)), L.Dense(1, name="d")]))
    other = keras.Sequential([keras.Input((2,)), L.Dense(1, name="e")])
    with pytest.raises(PlanError, match=r"L211 layer 'e' is in the model and not in the plan"):
        apply(other, plan)


def test_float8_is_refused_by_name(plan_of: Callable[..., Any]) -> None:
    model = keras.Sequential([keras.Input((2,)), L.Dense(1, name="d")])
    with pytest.raises(
        PlanError, match="L210 compute float8_e4m3fn is not available in castiron's TensorFlow"
    ):
        apply(model, plan_of(model, "float8-mixed"))


def test_narrow_parameters_without_master_are_warned_of(applied: Applied) -> None:
    model = keras.Sequential([keras.Input((2,)), L.Dense(1, name="d")])
    found = applied(model, "bf16-true", updates={"master": None, "rounding": "nearest"}).findings
    assert [f.code for f in found] == ["L208"]


def test_a_model_saves_and_loads_with_its_formats(applied: Applied, tmp_path: Any) -> None:
    model = classifier()
    applied(model, "bf16-mixed")
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert loaded.get_layer("hidden").compute_dtype == "bfloat16"
    assert {i.path for i in describe(loaded)} == {i.path for i in describe(model)}


def test_release_takes_the_boundaries_off(applied: Applied) -> None:
    model = classifier()
    applied(model, "bf16-mixed").release(model)
    assert not [path for path, layer in walk(model) if "call" in layer.__dict__]
