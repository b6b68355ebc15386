"""Missing values: spellings, treatments, and statistics that only training data may give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from castiron.data import ContractError, Dataset, Field, FittedMissing, Missing, ReadOptions, Schema, load


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(text: str, *fields: Field, **options: Any) -> Dataset:
    Path("a.csv").write_text(text)
    return load("a.csv", Schema(fields=fields), **options)


def test_spellings_are_compared_without_blanks() -> None:
    field = Field(name="x", missing={"treatment": "nan", "spellings": ["?", "N/A"]})
    values = read("x,y\n1,1\n?,1\n ? ,1\nN/A,1\nnan,1\n", field)["x"]
    assert np.isnan(values).tolist() == [False, True, True, True, True]
    with pytest.raises(ContractError, match="Received '' \\(text\\)"):
        read("x,y\n1,1\n,1\n", field)  # the empty cell is not among its spellings


def test_a_field_has_its_own_spellings() -> None:
    x = Field(name="x", missing={"treatment": "drop", "spellings": ["?"]})
    with pytest.raises(ContractError, match=r"Received '\?' \(text\) at a.csv:3, column 2"):
        read("x,y\n?,1\n2,?\n", x, Field(name="y"))


def test_words_of_text_that_mean_missing_may_have_blanks_around_them() -> None:
    part = Field(name="t", role="text", missing={"treatment": "constant", "value": "-", "spellings": ["?"]})
    data = read("t,x\n ? ,1\n?,1\n ,1\n a?,1\n", part, Field(name="x"))
    assert data.texts("t") == ["-", "-", " ", " a?"]


def test_spellings_for_all_fields_but_text() -> None:
    options = ReadOptions(missing_values=("", "NA"))
    data = read(
        "x,t\nNA,NA\n1,b\n", Field(name="x", missing="nan"), Field(name="t", role="text"), options=options
    )
    assert np.isnan(data["x"][0])
    assert data.texts("t") == ["NA", "b"]


def test_a_number_may_mean_missing() -> None:
    field = Field(name="insulin", missing={"treatment": "median", "spellings": ["0"]})
    data = read("insulin,y\n0,1\n10,1\n30,1\n0,1\n", field)
    assert data["insulin"].tolist() == [20, 10, 30, 20]
    assert data.report.columns[0].missing == data.report.columns[0].treated == 2


def test_constants() -> None:
    data = read(
        "x,n,c,b,t\n,,,,\n1,2,pos,true,a\n",
        Field(name="x", missing={"constant": -1}),
        Field(name="n", dtype="int64", missing=Missing(treatment="constant", value=7)),
        Field(name="c", role="target", categories=["neg", "pos"], missing={"constant": "neg"}),
        Field(name="b", role="mask", missing={"constant": False}),
        Field(name="t", role="text", missing={"constant": "<none>"}),
    )
    assert [data[n][0].item() for n in "xncb"] == [-1.0, 7, 0, False]
    assert data.texts("t") == ["<none>", "a"]


@pytest.mark.parametrize(("statistic", "value"), [("mean", 4.0), ("median", 2.0)])
def test_statistics_are_those_of_the_training_data(statistic: Any, value: float) -> None:
    schema = (Field(name="x", missing=statistic), Field(name="y", missing="drop"))
    train = read("x,y\n1,1\n2,1\n,1\n9,1\n1000,\n", *schema)
    assert train["x"].tolist() == [1, 2, value, 9]  # of the rows that are left
    fitted = train.fitted.values["x"]
    assert (fitted.statistic, fitted.value, fitted.rows) == (statistic, value, 3)
    train.fitted.save("missing.json")
    kept = FittedMissing.load("missing.json")
    assert kept == train.fitted
    test = read("x,y\n,1\n5,1\n", *schema, split="test", fitted=kept)
    assert test["x"].tolist() == [value, 5]
    assert test.fitted == kept


def test_statistics_are_not_fitted_on_other_splits() -> None:
    with pytest.raises(ContractError) as error:
        read("x\n1\n", Field(name="x", missing="mean"), split="test")
    assert str(error.value) == (
        "D141 Expected the mean of field 'x', fitted on the training data. "
        "Received none, for the test data at field 'x'. "
        "Load the training data first and hand its `fitted` to the other splits."
    )


def test_nothing_to_fit() -> None:
    with pytest.raises(ContractError, match="D142 Expected values of field 'x' to take the mean of"):
        read("x,y\n,1\n,2\n", Field(name="x", missing="mean"))


def test_a_field_without_gaps_is_fitted_all_the_same() -> None:
    assert read("x\n1\n3\n", Field(name="x", missing="mean")).fitted.values["x"].value == 2


def test_gaps_inside_rows_of_a_shape(tmp_path: Path) -> None:
    Path("a.jsonl").write_text('{"x": [1, null]}\n{"x": null}\n{"x": [3, 8]}\n')
    data = load("a.jsonl", Schema.of(Field(name="x", shape=(2,), missing="mean")))
    assert data["x"].tolist() == [[1, 4], [4, 4], [3, 8]]


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"name": "x", "dtype": "int64", "missing": "mean"}, "missing: mean needs a float dtype"),
        ({"name": "x", "dtype": "int64", "missing": "nan"}, "missing: nan needs a float dtype"),
        ({"name": "x", "missing": {"treatment": "constant"}}, "Expected `value` with treatment 'constant'"),
        ({"name": "x", "missing": {"treatment": "drop", "value": 1}}, "Expected `value` with treatment"),
        ({"name": "x", "missing": {"constant": "a"}}, "expected a number, received 'a'"),
        ({"name": "x", "role": "text", "missing": "mean"}, "missing may be error, drop or constant"),
        ({"name": "x", "role": "text", "dtype": "int64"}, "is text: it has no dtype, shape or categories"),
        ({"name": "x", "categories": ["a"], "dtype": "float32"}, "expected an integer dtype, not float32"),
        ({"name": "x", "role": "target", "categories": ["a", "a"]}, "Expected every category once"),
        ({"name": "x", "role": "target", "categories": ["a"], "missing": {"constant": "b"}}, "none of its"),
        ({"name": "x", "minimum": 2, "maximum": 1}, "minimum 2 is above maximum 1"),
        ({"name": "x", "shape": [0]}, "expected a shape of sizes from 1"),
        ({"name": "x", "colour": 1}, "Extra inputs are not permitted"),
    ],
)
def test_a_field_that_contradicts_itself(declared: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="validation error") as error:
        Field.model_validate(declared)
    assert said in str(error.value)


def test_a_schema_reads_back() -> None:
    schema = Schema.of(
        Field(name="t", role="text", column=["sentence", "content"], missing={"constant": "-"}),
        Field(name="y", role="target", categories={False: 0, True: 1}),
        Field(name="x", column=3, dtype="bfloat16", minimum=-1, tolerance=0.01, bad="drop", required=False),
        Field(name="im", role="image", shape=(28, 28)),
        strict=True,
        bad_rows="drop",
    )
    assert Schema.model_validate_json(schema.model_dump_json()) == schema
    assert schema["y"].categories == {"false": 0, "true": 1}
    assert schema["y"].dtype == "int64"
    assert schema["im"].dtype == "uint8"
    assert schema["im"].form == "uint8 [28, 28]"
    assert [f.name for f in schema.by_role("text", "image")] == ["t", "im"]
    assert schema.without("y").names == ("t", "x", "im")
    assert "y" in schema
    with pytest.raises(KeyError, match=r"Expected a field \(t, y, x, im\). Received 'z'."):
        schema["z"]
    with pytest.raises(ValueError, match="Received 'x' more than once"):
        Schema.of(Field(name="x"), Field(name="x"))
