"""Data of a run: files, held-out rows, embedded data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from castiron.data import Dataset, Field, Schema
from castiron.diagnostics import ConfigError, DataError
from castiron.training.config import HoldOut
from castiron.training.config_file import load_config
from castiron.training.hold_out import hold_out
from castiron.training.splits import check_splits, load_splits


def numbers(rows: int) -> Dataset:
    return Dataset(Schema.of(Field(name="x", dtype="int64")), {"x": np.arange(rows, dtype=np.int64)})


def texts(path, lines: list[str]) -> str:
    path.write_text("text,label\n" + "".join(f"{line},{i % 2}\n" for i, line in enumerate(lines)))
    return str(path)


@pytest.fixture
def tiny(user_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def load(*overrides: str, wanted=("train", "validation", "test"), **options):
        loaded = load_config("my_recipe.py:Tiny", overrides)
        return load_splits(
            loaded.config, loaded.recipe(loaded.config), tmp_path / "embedded", wanted, **options
        )

    return load


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(3, 300), validation=st.integers(0, 99), test=st.integers(0, 99), seed=st.integers(0, 9)
)
def test_every_row_is_in_one_split(rows, validation, test, seed):
    by = HoldOut(validation=validation, test=test, seed=seed)
    if validation + test >= rows:
        with pytest.raises(ConfigError, match="No training rows are left"):
            hold_out(numbers(rows), by)
        return
    found = hold_out(numbers(rows), by)
    assert len(found.get("test", ())) == test
    assert len(found.get("validation", ())) == validation
    rows_seen = np.concatenate([d.array("x") for d in found.values()])
    assert sorted(rows_seen) == list(range(rows))
    again = hold_out(numbers(rows), by)
    assert all((again[s].array("x") == found[s].array("x")).all() for s in found)


def test_the_test_rows_do_not_depend_on_what_else_is_held_out():
    few = hold_out(numbers(100), HoldOut(test=10))["test"].array("x")
    more = hold_out(numbers(100), HoldOut(test=10, validation=0.2))
    assert (few == more["test"].array("x")).all()
    assert len(more["validation"]) == 20
    assert list(more) == ["train", "validation", "test"]


def test_texts_of_the_test_rows_are_in_no_other_split(tiny, tmp_path):
    lines = [f"text {i % 30}" for i in range(90)]
    found = tiny(f"data.train={texts(tmp_path / 'a.csv', lines)}", "data.hold_out={test: 10, validation: 9}")
    seen = {split: set(data.texts("text")) for split, data in found.items()}
    assert len(found["test"]) == 10
    assert not seen["test"] & (seen["validation"] | seen["train"])
    assert not seen["validation"] & seen["train"]
    assert found["train"].report.dropped > 0
    assert found["train"].report.rows == len(found["train"])


@pytest.mark.parametrize(("key", "unseen"), [(("x",), True), ((), False)])
def test_the_schema_says_which_rows_are_the_same(key, unseen):
    schema = Schema.of(Field(name="x", dtype="int64"), Field(name="y", dtype="int64"), key=key)
    columns = {"x": np.arange(90) % 30, "y": np.arange(90)}
    found = hold_out(Dataset(schema, columns), HoldOut(test=10))
    both = set(found["test"].array("x")) & set(found["train"].array("x"))
    assert (not both) is unseen
    with pytest.raises(ValueError, match=r"Expected fields of the schema as its key. Received \['z'\]."):
        Schema.of(Field(name="x"), key=("z",))


def test_rows_keep_their_lines(tiny, tmp_path):
    path = texts(tmp_path / "a.csv", [f"text {i}" for i in range(20)])
    found = tiny(f"data.train={path}", "data.hold_out.test=5")
    for data in found.values():
        for i in range(len(data)):
            number = int(data.texts("text")[i].split()[1])
            assert str(data.origin(i)) == f"{path}:{number + 2}"


def test_embedded_data_stands_in(tiny):
    found = tiny("data.columns.text=elsewhere")
    assert {split: len(data) for split, data in found.items()} == {"train": 20, "validation": 5, "test": 5}
    assert list(tiny(wanted=("test",))) == ["test"]


def test_a_config_made_for_files_says_so(tiny):
    with pytest.raises(ConfigError) as error:
        tiny("data.embedded=false")
    assert str(error.value) == (
        "X804 This config is made for data of yours, and names none. Expected a path as data.train. "
        "Received null at key 'data.embedded'. "
        "Name the files: data.train=FILE data.validation=FILE data.test=FILE."
    )


def test_files_and_columns_of_the_config(tiny, tmp_path):
    (tmp_path / "a.tsv").write_text('0\ta "quoted" word\n1\tb\n')
    (tmp_path / "b.tsv").write_text("1\tc\n")
    found = tiny(
        "data.train=[a.tsv, b.tsv]",
        "data.columns={text: 1, label: 0}",
        "data.read={header: false, quoting: false}",
    )
    assert found["train"].texts("text") == ['a "quoted" word', "b", "c"]
    assert list(found) == ["train"]


def test_the_report_of_every_split_also_of_broken_ones(user_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.csv").write_text("text,label\na,x\nb,1\n")
    good = texts(tmp_path / "good.csv", ["a", "b"])
    loaded = load_config("my_recipe.py:Tiny", ["data.train=bad.csv", f"data.test={good}"])
    reports = check_splits(loaded.config, loaded.recipe(loaded.config), tmp_path)
    assert not reports["train"].is_sound
    assert reports["test"].is_sound
    with pytest.raises(DataError, match="Received 'x'"):
        load_splits(loaded.config, loaded.recipe(loaded.config), tmp_path)


def test_files_are_digested_where_a_run_reads_them_unless_it_is_told_not_to(tiny, tmp_path):
    train = texts(tmp_path / "train.csv", ["a", "b", "c", "d"])
    digest = blake3((tmp_path / "train.csv").read_bytes()).hexdigest()
    assert tiny(f"data.train={train}")["train"].report.files[0].blake3 == digest
    without = tiny(f"data.train={train}", "data.read.digest=false")
    assert without["train"].report.files[0].blake3 == ""
    embedded = tiny()["train"].report.files[0]
    assert embedded.blake3 == blake3(Path(embedded.file).read_bytes()).hexdigest()
    loaded = load_config("my_recipe.py:Tiny", [f"data.train={train}"])
    checked = check_splits(loaded.config, loaded.recipe(loaded.config), tmp_path)
    assert checked["train"].files[0].blake3 == ""
