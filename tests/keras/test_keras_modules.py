"""A Keras model as plain data."""

from __future__ import annotations

import keras
import pytest

from castiron.diagnostics import PlanError
from castiron.keras.modules import describe, family, variables

L = keras.layers


def text_model() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((None,), dtype="int64"),
            L.Embedding(10, 4, name="embedding"),
            L.Bidirectional(L.LSTM(3), name="encoder"),
            L.BatchNormalization(name="norm"),
            L.Dense(2, activation="softmax", name="head"),
        ]
    )


def test_layers_of_a_sequential_model_go_by_their_names_and_those_in_attributes_by_the_attribute() -> None:
    found = {info.path: info.family for info in describe(text_model())}
    assert found == {
        "": None,
        "embedding": "embedding",
        "encoder": None,
        "encoder.forward_layer": "lstm",
        "encoder.forward_layer.cell": "lstm",
        "encoder.backward_layer": "lstm",
        "encoder.backward_layer.cell": "lstm",
        "norm": "normalization",
        "head": "matmul",
        "head.activation": "softmax",
    }


def test_variables_have_full_names_shapes_and_roles() -> None:
    norm = next(info for info in describe(text_model()) if info.path == "norm")
    assert [(t.name, t.shape, t.trainable) for t in norm.parameters] == [
        ("norm.gamma", (6,), True),
        ("norm.beta", (6,), True),
    ]
    assert [t.name for t in norm.buffers] == ["norm.moving_mean", "norm.moving_variance"]
    assert "encoder.forward_layer.cell.recurrent_kernel" in variables(text_model())


def test_a_subclassed_model_lists_its_attributes_and_lists_of_layers() -> None:
    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = [L.Dense(4), L.Dense(4)]
            self.head = L.Dense(1)

        def call(self, x):
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    model = Net()
    with pytest.raises(PlanError, match=r"L209 a Dense has no variables yet.*never called or built at layer"):
        describe(model)
    model(keras.ops.zeros((1, 4)))
    assert [info.path for info in describe(model)] == ["", "blocks.0", "blocks.1", "head"]


def test_a_shared_layer_is_listed_under_both_paths_and_says_so() -> None:
    shared = L.Dense(3, name="shared")

    class Twice(L.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = shared, L.Wrapper(shared)

    layer = Twice()
    shared.build((None, 3))
    rows = {info.path: info for info in describe(layer)}
    assert rows["b.layer"].parameters[0].same_as == "a.kernel"


def test_a_nested_model_is_walked_and_the_softmax_inside_attention_is_part_of_it() -> None:
    inner = keras.Sequential([keras.Input((3, 8)), L.Dense(8, name="dense")], name="inner")
    x = keras.Input((3, 8))
    y = L.MultiHeadAttention(2, 4, name="attention")(inner(x), inner(x))
    found = [info.path for info in describe(keras.Model(x, y))]
    assert found[:3] == ["", "inner", "inner.dense"]
    assert "attention.query" in found
    assert not any("softmax" in path for path in found)


def test_a_softmax_activation_layer_is_of_the_softmax_family() -> None:
    assert family(L.Activation("softmax")) == "softmax"
    assert family(L.Activation("relu")) is None


def test_the_state_of_a_stateful_layer_counts_as_a_buffer() -> None:
    model = keras.Sequential([keras.Input(batch_shape=(2, 3, 4)), L.LSTM(5, stateful=True, name="lstm")])
    row = next(info for info in describe(model) if info.path == "lstm")
    assert [t.shape for t in row.buffers] == [(2, 5), (2, 5)]
