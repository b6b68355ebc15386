"""Batches cast by role before they enter a Keras model."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from castiron.data import Batches, Field, Ragged, Schema
from castiron.diagnostics import DataError
from castiron.keras.inputs import as_dataset, cast_inputs
from castiron.policy import PrecisionPolicy

FLOAT32 = PrecisionPolicy.preset("float32")


def test_features_and_targets_are_cast_by_role_and_integers_stay() -> None:
    schema = Schema.of(
        Field(name="x", role="feature", dtype="float32"), Field(name="y", role="target", dtype="float32")
    )
    batch = {"x": np.ones(2), "y": np.ones(2), "id": np.array([2**53 + 1])}
    out = cast_inputs(batch, PrecisionPolicy.preset("bf16-true"), schema)
    assert {k: str(v.dtype) for k, v in out.items()} == {"x": "bfloat16", "y": "float32", "id": "int64"}
    assert out["id"][0] == 2**53 + 1


def test_float64_never_passes_unless_declared() -> None:
    assert cast_inputs(np.ones(2), FLOAT32).dtype == np.float32
    assert cast_inputs(tf.ones(2, tf.float64), FLOAT32).dtype == tf.float32
    assert cast_inputs(np.ones(2), PrecisionPolicy.preset("float64")).dtype == np.float64
    assert cast_inputs(np.ones(2, "float32"), PrecisionPolicy.preset("float64")).dtype == np.float64


def test_what_needs_no_cast_is_the_same_object() -> None:
    x = np.ones(2, "float32")
    assert cast_inputs({"x": x}, FLOAT32)["x"] is x


def test_a_value_that_overflows_is_named() -> None:
    with pytest.raises(
        DataError, match=r"D103 a value does not fit into float32.*Received 1e\+300 \(float64\) at field "
    ) as e:
        cast_inputs({"x": np.array([[0.0, 1e300]])}, FLOAT32)
    assert e.value.findings[0].place.field == "batch['x'][0][1]"


@pytest.mark.parametrize(
    ("array", "code", "words"),
    [
        (np.array([["1", "N/A"]], dtype=object), "D117", "Python objects: '1'"),
        (np.array(["a", "b"]), "D101", "text"),
        (np.array(["2020-01-01"], "datetime64[D]"), "D118", "dates"),
    ],
)
def test_arrays_of_no_numbers_are_refused_with_the_place(array: np.ndarray, code: str, words: str) -> None:
    with pytest.raises(DataError, match=f"{code} a leaf of the batch holds no numbers.*{words}"):
        cast_inputs({"x": array}, FLOAT32)


def test_batches_of_the_contract_become_a_tf_dataset() -> None:
    ragged = Ragged(np.array([5, 6, 7, 8, 9]), np.array([0, 2, 5]))
    batches = Batches({"text": ragged, "x": np.ones(2, "float32")}, 2, seed=1)
    data = as_dataset(batches, FLOAT32)
    (batch,) = list(data)
    assert batch["text"].shape == (2, 3)
    assert {k: v.dtype.name for k, v in batch.items()} == {
        "text": "int64",
        "text_length": "int64",
        "x": "float32",
        "row": "int64",
    }
    assert len(data) == 1
    assert len(list(data)) == 1
