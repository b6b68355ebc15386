"""The contract against real files and their real dirt (see SOURCE.md beside each)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from castiron.data import ContractError, Field, ReadOptions, Schema, load

pytestmark = pytest.mark.data

PLAIN = ReadOptions(header=False)


def counts(error: pytest.ExceptionInfo[ContractError]) -> dict[str, int]:
    found: dict[str, int] = {}
    for finding in error.value.findings:
        found[finding.code] = found.get(finding.code, 0) + finding.count
    return found


def question(treatment: str = "error") -> Any:
    return {"treatment": treatment, "spellings": ["?"]}


def test_auto_mpg(data_folder: Path) -> None:
    names = ["mpg", "cylinders", "displacement", "horsepower", "weight", "acceleration", "year", "origin"]
    fields = [Field(name=n, column=i, missing=question()) for i, n in enumerate(names)]
    schema = Schema(fields=(*fields, Field(name="car", role="text", column=8)))
    options = ReadOptions(header=False, delimiter="whitespace", format="csv")
    path = data_folder / "auto_mpg" / "auto-mpg.data"
    with pytest.raises(ContractError) as error:
        load(path, schema, options=options)
    assert counts(error) == {"D102": 6}
    assert [(f.place.line, f.place.column) for f in error.value.findings] == [
        (line, 4) for line in (33, 127, 331, 337, 355, 375)
    ]
    fields[3] = Field(name="horsepower", column=3, missing=question("median"))
    data = load(path, Schema(fields=(*fields, schema["car"])), options=options)
    assert len(data) == 398
    assert data.fitted.values["horsepower"].value == 93.5
    assert data["weight"][0] == 3504
    assert "plymouth 'cuda 340" in data.texts("car")


def test_wisconsin(data_folder: Path) -> None:
    label = Field(name="class", role="target", column=10, categories={2: 0, 4: 1})
    path = data_folder / "breast_cancer_wisconsin" / "breast-cancer-wisconsin.data"
    options = ReadOptions(header=False, format="csv")
    with pytest.raises(ContractError) as error:
        load(path, Schema.of(Field(name="nuclei", column=6), label), options=options)
    assert counts(error) == {"D101": 16}
    first = error.value.findings[0]
    assert (first.place.line, first.place.column, first.received) == (24, 7, "'?' (text)")
    nuclei = Field(name="nuclei", column=6, dtype="int64", missing=question("drop"), minimum=1, maximum=10)
    data = load(path, Schema.of(Field(name="id", role="id", column=0), nuclei, label), options=options)
    assert len(data) == 683
    assert [data.origin(i).line for i in (22, 23)] == [23, 25]
    assert np.bincount(data.array("class")).tolist() == [444, 239]


def test_adult(data_folder: Path) -> None:
    work = Field(name="work", column=1, role="target", missing=question("drop"), categories=[
        "State-gov", "Self-emp-not-inc", "Private", "Federal-gov", "Local-gov", "Self-emp-inc",
        "Without-pay", "Never-worked",
    ])  # fmt: skip
    income = Field(name="income", column=14, role="target", categories=["<=50K", ">50K"])
    train, test = (data_folder / "adult" / f"adult-{split}.csv" for split in ("train", "test"))
    data = load(train, Schema.of(work, income), options=PLAIN)
    assert data.report.dropped == 1836
    with pytest.raises(ContractError, match=r"Received ' <=50K\.' \(text\), close to '<=50K'"):
        load(test, Schema.of(income), options=PLAIN)
    both = Field(
        name="income", column=14, categories={"<=50K": 0, ">50K": 1, "<=50K.": 0, ">50K.": 1}, dtype="int64"
    )
    assert len(load([train, test], Schema.of(both), options=PLAIN)) == 48842
    with pytest.raises(ContractError) as error:
        load(train, Schema.of(Field(name="fnlwgt", column=2, dtype="float16")), options=PLAIN)
    assert counts(error)["D103"] == 29315


def test_telco(data_folder: Path) -> None:
    path = next((data_folder / "telco_churn").glob("*.csv"))
    with pytest.raises(ContractError) as error:
        load(path, Schema.of(Field(name="TotalCharges")))
    assert counts(error) == {"D102": 11}
    assert error.value.findings[0].sentence() == (
        "Expected float32 for field 'TotalCharges'. "
        f"Received ' ', which means missing at {path}:490, column 20."
    )
    data = load(
        path,
        Schema.of(Field(name="TotalCharges", missing={"constant": 0}), Field(name="Churn", dtype="bool")),
    )
    assert len(data) == 7043
    assert data["Churn"].mean() == pytest.approx(0.265, abs=1e-3)


def test_titanic(data_folder: Path) -> None:
    schema = Schema.of(
        Field(name="Age", missing="median"),
        Field(name="Cabin", role="text", missing={"constant": "-"}),
        Field(name="Name", role="text"),
        Field(name="Ticket", role="text"),
    )
    data = load(data_folder / "titanic" / "titanic.csv", schema)
    assert [c.missing for c in data.report.columns] == [177, 687, 0, 0]
    assert data.fitted.values["Age"].value == 28
    assert data.texts("Name")[0] == "Braund, Mr. Owen Harris"
    assert data.texts("Cabin")[0] == "-"


def test_beijing(data_folder: Path) -> None:
    path = data_folder / "beijing_pm25" / "pollution.csv"
    with pytest.raises(ContractError) as error:
        load(path, Schema.of(Field(name="pm2.5", role="target")))
    assert counts(error) == {"D101": 2067}
    gap = {"treatment": "drop", "spellings": ["NA"]}
    wind = Field(name="cbwd", categories=["NW", "NE", "SE", "cv"], dtype="int64")
    data = load(path, Schema.of(Field(name="pm2.5", role="target", missing=gap), wind))
    assert len(data) == 43824 - 2067
    assert data.origin(0).line == 26
    assert data.origin(-1).line == 43825


def test_sst2_phrases(data_folder: Path) -> None:
    folder = data_folder / "sst2" / "glue_phrases"
    schema = Schema.of(
        Field(name="text", role="text", column=["sentence", "content"]),
        Field(name="label", role="target", categories=["0", "1"]),
    )
    train = load(folder / "train.tsv", schema)
    assert len(train) == 67349
    assert int(train.array("label").sum()) == 37569
    texts = train.texts("text")
    lines = (folder / "train.tsv").read_bytes().decode().split("\n")
    for word in ("true", "false", "nothing", "10", "1987"):
        row = texts.index(word)
        assert lines[train.origin(row).line - 1].rstrip("\r").endswith(f"\t{word}")
    held_out = load([folder / "dev.tsv", folder / "test.tsv"], schema, split="test")
    assert len(held_out) == 872 + 1821
    assert held_out.origin(872).file.endswith("test.tsv")
    assert held_out.origin(872).line == 2


def test_sst2_sentences_without_header_and_final_newline(data_folder: Path) -> None:
    schema = Schema.of(
        Field(name="text", role="text", column=0), Field(name="label", dtype="int64", column=1)
    )
    data = load(data_folder / "sst2" / "clean_tsv" / "train.tsv", schema, options=PLAIN)
    assert len(data) == 6920
    assert data.origin(6919).line == 6920


def test_imdb(data_folder: Path) -> None:
    schema = Schema.of(
        Field(name="text", role="text"),
        Field(name="label", role="target", dtype="int64"),
        Field(name="rating", minimum=1, maximum=10),
        Field(name="id", role="id"),
    )
    data = load(data_folder / "imdb" / "imdb_train.jsonl.gz", schema)
    assert len(data) == 25000
    assert data.origin(24999).line == 25000
    assert sum(any("\x80" <= c <= "\x9f" for c in text) for text in data.texts("text")) == 811
    assert data.report.extra_columns == ["dir"]


def test_mr_is_windows_1252(data_folder: Path) -> None:
    path = data_folder / "mr" / "rt-polarity.pos"
    schema = Schema.of(Field(name="text", role="text", column=0))
    with pytest.raises(ContractError) as error:
        load(path, schema, options=ReadOptions(header=False, format="tsv"))
    assert "byte 0xf3 as byte 48 of the line at " in str(error.value)
    assert error.value.findings[0].place.line == 44
    data = load(path, schema, options=ReadOptions(header=False, format="tsv", encoding="windows-1252"))
    assert len(data) == 5331
    assert data.origin(5330).line == 5331


def test_ett_is_rounded_in_a_quarter_of_its_cells(data_folder: Path) -> None:
    names = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
    data = load(data_folder / "etth1" / "ETTh1.csv", Schema(fields=tuple(Field(name=n) for n in names)))
    rounded = sum(c.rounded for c in data.report.columns)
    assert rounded / (17420 * 7) == pytest.approx(0.24, abs=0.01)
    assert max(c.largest_relative_error for c in data.report.columns) < 6e-8


def test_zero_may_be_declared_missing_in_pima(data_folder: Path) -> None:
    field = Field(name="insulin", column=4, missing={"treatment": "median", "spellings": ["0"]})
    data = load(data_folder / "pima" / "pima-indians-diabetes.csv", Schema.of(field), options=PLAIN)
    assert data.report.columns[0].missing == 374
    assert len(data) == 768
