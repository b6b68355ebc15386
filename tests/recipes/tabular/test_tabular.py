"""The recipe `tabular`: dirty tables as they are packaged, features of rows, and its training."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from castiron.data import load
from castiron.training.config_file import load_config
from castiron.training.launch import train
from castiron_recipes.tabular.dirt import GAPS, GROUPED, write
from castiron_recipes.tabular.encoding import MISSING, UNSEEN, Scale, TableEncoder
from castiron_recipes.tabular.model import TableNet


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("table", "count"), [("breast-cancer", 569), ("diabetes", 442)])
def test_embedded_tables_are_dirty_and_the_same_for_a_seed(table, count, tmp_path: Path) -> None:
    files = write(table, tmp_path / "a", seed=3)
    again = write(table, tmp_path / "b", seed=3)
    assert all(files[s].read_bytes() == again[s].read_bytes() for s in files)
    other = write(table, tmp_path / "c", seed=4)
    assert files["train"].read_bytes() != other["train"].read_bytes()
    found = [row for path in files.values() for row in rows(path)]
    assert len(found) == count
    cells = [cell for row in found for cell in list(row.values())[:-1]]
    share = sum(cell in GAPS for cell in cells) / len(cells)
    assert 0.03 < share < 0.07
    assert set(GAPS) <= set(cells)
    column, words = GROUPED[table]
    assert {row[column] for row in found} == {*words, *GAPS}


def test_numbers_are_scaled_and_gaps_are_told_by_a_feature() -> None:
    values = np.array([1, 3, np.nan, 5], np.float32)
    scale = Scale.of(values)
    feature, gap = scale.apply(values)
    assert scale.median == 3
    assert feature.dtype == np.float32
    assert feature[2] == feature[1]  # the median stands in
    assert gap.tolist() == [0, 0, 1, 0]
    np.testing.assert_allclose(scale.undo(feature.astype(np.float64)), [1, 3, 3, 5], rtol=1e-6)
    whole = Scale.of(np.array([2, 2, 2], np.float32))
    assert [f.tolist() for f in whole.apply(np.array([2, 3], np.float32))] == [[0, 1]]
    logged = Scale.of(np.array([0, 1e6], np.float32), log=True)
    assert logged.std < 10


def test_rare_new_and_missing_words(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("age,colour,y\n" + "1, red ,0\n" * 5 + "2,blue,1\n? , ?,1\n")
    recipe = load_config(
        "tabular", ["model.numbers=[age]", "model.categories=[colour]", "model.target=y",
                    "model.classes={'0': 0, '1': 1}"],
    )  # fmt: skip
    made = recipe.recipe(recipe.config)
    data = load(path, made.schema())
    assert data.report.columns[1].missing == 1
    made.learn(data)
    assert made.encoder.words == {"colour": {"red": 2}}
    assert made.encode(data)["categories"][:, 0].tolist() == [2] * 5 + [UNSEEN, MISSING]
    made.save(tmp_path)
    again = TableEncoder.load(tmp_path / "table.json")
    assert again == made.encoder
    assert again.vocabularies == [3]
    assert again.features == 2


def test_without_hidden_layers_it_is_a_linear_map() -> None:
    torch.manual_seed(0)
    model = TableNet(3, [4], 1, hidden=[], embedding=2, dropout=0.5)
    words = torch.tensor([[1], [1], [1]])
    a, b = torch.randn(1, 3), torch.randn(1, 3)
    outputs = model(torch.cat([a, b, (a + b) / 2]), words)[:, 0]
    torch.testing.assert_close(outputs[2], (outputs[0] + outputs[1]) / 2)


def test_a_number_is_predicted_in_its_own_units(few_steps) -> None:
    _, outcome = few_steps("tabular/diabetes_linear", "trainer.max_steps=4")
    assert 30 < outcome.metrics["test"]["rmse"] < 400


def test_linear_regression_reaches_what_least_squares_reaches(tmp_path: Path) -> None:
    """An R² of 0.4 is what scikit-learn's LinearRegression has on this table."""
    loaded = load_config("tabular/diabetes_linear", ["trainer.threads=1", "trainer.max_epochs=30"])
    _, outcome = train(loaded, runs=tmp_path, name="run")
    assert outcome.metrics["test"]["r2"] > 0.3


@pytest.mark.data
def test_messy_files_load_with_their_stated_treatment(data_folder: Path) -> None:
    gaps = {
        "telco_churn": ("telco_churn/WA_Fn-UseC_-Telco-Customer-Churn.csv", {"TotalCharges": 11}),
        "titanic": ("titanic/titanic.csv", {"Age": 177, "Embarked": 2}),
        "breast_cancer_wisconsin": (
            "breast_cancer_wisconsin/breast-cancer-wisconsin.data", {"bare nuclei": 16},
        ),
        "pima": ("pima/pima-indians-diabetes.csv", {}),
        "auto_mpg": ("auto_mpg/auto-mpg.data", {"horsepower": 6}),
        "adult": (
            "adult/adult-train.csv", {"workclass": 1836, "occupation": 1843, "native-country": 583},
        ),
    }  # fmt: skip
    for name, (file, expected) in gaps.items():
        loaded = load_config(f"tabular/{name}", [f"data.train={data_folder / file}"])
        config = loaded.config
        data = load(
            data_folder / file, loaded.recipe(config).schema(), columns=config.data.columns,
            options=config.data.read, casts=config.precision.casts,
        )  # fmt: skip
        assert data.report.dropped == 0, name
        assert {c.field: c.missing for c in data.report.columns if c.missing} == expected, name
