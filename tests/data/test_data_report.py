"""The report in its three forms, and data sets made and taken apart in memory."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from castiron.data import ContractError, DataReport, Dataset, Field, ReadOptions, Schema, load
from castiron.diagnostics import RULES

SCHEMA = Schema.of(
    Field(name="text", role="text"),
    Field(name="rating", bad="drop", missing={"treatment": "median", "spellings": ["", "N/A"]}),
)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.chdir(tmp_path)
    Path("reviews.csv").write_text("text,rating,z\na,0.1,1\nb,N/A,1\nc,five,1\nd,2,1\n")
    return load("reviews.csv", SCHEMA, split="train", options=ReadOptions(digest=True))


def test_as_text(data: Dataset) -> None:
    digest = data.report.files[0].blake3[:12]
    assert data.report.as_text().splitlines() == [
        "train: 3 rows (4 read, 1 left out as declared); 1 columns unused",
        f"  reviews.csv: 4 rows, 45 bytes, blake3 {digest}…",
        "",
        "field   source  target   rows  exact  rounded  lossy  largest error     missing  bad    range",
        "text    text    text        4      -        -      -              -           0    0        -",
        "rating  text    float32     4      1        1      0        1.5e-08  1 (median)    1  0.1 … 2",
        "",
        "info D101: The row of a cell of field 'rating' is left out, as declared. "
        "Expected float32 for field 'rating'. Received 'five' (text) at reviews.csv:4, column 2.",
        "",
        "info D102: A missing value of field 'rating' becomes the median of the training data, 1.05, as "
        "declared. Expected float32 for field 'rating'. "
        "Received 'N/A', which means missing at reviews.csv:3, column 2.",
    ]


def test_as_markdown(data: Dataset) -> None:
    lines = data.report.as_markdown().splitlines()
    assert lines[0] == "**train: 3 rows (4 read, 1 left out as declared); 1 columns unused**"
    assert "| rating | text | float32 | 4 | 1 | 1 | 0 | 1.5e-08 | 1 (median) | 1 | 0.1 … 2 |" in lines
    assert lines[-1].startswith("- info D102: A missing value of field 'rating' becomes the median")


def test_reads_back(data: Dataset) -> None:
    data.report.save("data.json")
    back = DataReport.load("data.json")
    assert back == data.report
    assert [str(f) for f in back.as_findings()] == [str(f) for f in data.report.as_findings()]
    assert back.is_sound


def test_every_value_is_counted_once(data: Dataset) -> None:
    for c in data.report.columns:
        assert c.values == c.exact + c.rounded + c.lossy + c.missing + c.bad


def test_a_refusal_carries_its_report_through_pickle(data: Dataset) -> None:
    with pytest.raises(ContractError) as error:
        load("reviews.csv", Schema.of(Field(name="rating")))
    again = pickle.loads(pickle.dumps(error.value))
    assert again.findings == error.value.findings
    assert again.report == error.value.report
    assert not again.report.is_sound
    assert "2 cells refused" in again.report.as_text()


def test_rows_and_origins(data: Dataset) -> None:
    assert len(data) == 3
    assert data.row(1) == {"text": "b", "rating": np.float32(1.05)}
    assert [data.origin(i).line for i in range(3)] == [2, 3, 5]
    some = data.take(np.array([2, 0]))
    assert some.texts("text") == ["d", "a"]
    assert [str(some.origin(i)) for i in (0, -1)] == ["reviews.csv:5", "reviews.csv:2"]
    assert data.take(data["rating"] > 1).texts("text") == ["b", "d"]
    with pytest.raises(IndexError, match=r"Expected a row from 0 to 2\. Received 3\."):
        data.origin(3)


def test_columns_by_kind(data: Dataset) -> None:
    assert data.array("rating").dtype == np.float32
    assert repr(data) == "Dataset(3 rows, text: text, rating: float32)"
    with pytest.raises(TypeError, match=r"Expected a text field\. Received 'rating' of float32"):
        data.texts("rating")
    with pytest.raises(TypeError, match=r"Received text field 'text'"):
        data.array("text")
    with pytest.raises(KeyError, match="Expected a field"):
        data["z"]


def test_a_data_set_in_memory() -> None:
    texts = pa.chunked_array([pa.array(["a", "b"], pa.large_string())])
    data = Dataset(SCHEMA, {"text": texts, "rating": np.zeros(2, np.float32)})
    assert str(data.origin(1)) == "<memory>:2"
    with pytest.raises(ValueError, match="Expected columns of one length"):
        Dataset(SCHEMA, {"text": texts, "rating": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="Expected columns of the schema"):
        Dataset(SCHEMA, {"other": np.zeros(3, np.float32)})


def test_every_data_rule_is_complete() -> None:
    rules = [r for code, r in RULES.items() if code.startswith("D1")]
    assert len({r.name for r in rules}) == len(rules) > 30
    for rule in rules:
        for text in (rule.what, rule.why, rule.remedy):
            assert text.endswith((".", ".)", "?")), f"{rule.code}: {text}"
        assert bool(rule.bad) == bool(rule.good), rule.code


def test_every_code_that_is_said_is_in_the_catalogue() -> None:
    import re

    import castiron.data

    folder = Path(castiron.data.__file__).parent
    said = {c for file in folder.rglob("*.py") for c in re.findall(r"\"(D1\d\d)\"", file.read_text("utf-8"))}
    known = {code for code in RULES if code.startswith("D1")}
    assert said <= known
    assert known <= said
