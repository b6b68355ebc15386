"""Layers of a config, and what stands for what."""

from __future__ import annotations

import pytest

from castiron.diagnostics import ConfigError, Place, finding
from castiron.training.config import RunConfig
from castiron.training.config_file import configure, default_config, load_config, name_of
from castiron.training.config_merge import Merged
from castiron.training.overrides import read_overrides, split_key
from castiron.training.registry import find_recipe
from castiron.training.yaml_reader import read_text


@pytest.fixture
def here(user_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def merged(*texts: str, overrides: list[str] | None = None) -> dict:
    files = [read_text(t, f"{i}.yaml") for i, t in enumerate(texts)]
    return Merged([*files, *read_overrides(overrides or [])]).tree


def test_arguments_win_over_the_file_and_later_ones_over_earlier(here):
    (here / "a.yaml").write_text("recipe: my_recipe.py:Tiny\nseed: 1\nmodel: {hidden: 3, dropout: 0.1}\n")
    loaded = load_config("a.yaml", ["seed=2", "model.hidden=4", "seed=3"])
    assert loaded.config.seed == 3
    assert loaded.config.model.hidden == 4
    assert loaded.config.model.dropout == 0.1
    assert isinstance(loaded.config.model, loaded.recipe.Config)


def test_a_recipe_by_path_is_its_default_config(here):
    loaded = load_config("my_recipe.py:Tiny", ["precision=bf16-mixed"])
    assert loaded.recipe.name == "tiny"
    assert loaded.config.recipe == f"{here}/my_recipe.py:Tiny"
    assert loaded.config.precision.label == "bf16-mixed"


def test_the_recipe_is_looked_for_beside_the_config(here, monkeypatch, tmp_path_factory):
    (here / "a.yaml").write_text("recipe: my_recipe.py:Tiny\n")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load_config(here / "a.yaml").config.recipe == f"{here}/my_recipe.py:Tiny"


def test_data_paths_are_made_absolute_from_the_current_folder(here):
    config = load_config("my_recipe.py:Tiny", ["data.train=[a.csv, sub/b.csv]", "data.test=/x/t.csv"]).config
    assert config.data.train == (f"{here}/a.csv", f"{here}/sub/b.csv")
    assert config.data.test == "/x/t.csv"


def test_short_forms_are_spelt_out_when_something_is_added():
    assert merged("precision: bf16-mixed", overrides=["precision.output=float32"]) == {
        "precision": {"preset": "bf16-mixed", "output": "float32"}
    }
    assert merged("precision: p=float32,c=bfloat16", overrides=["precision.loss=float64"]) == {
        "precision": {"param": "float32", "compute": "bfloat16", "loss": "float64"}
    }
    assert merged("optimizer: {schedule: cosine}", overrides=["optimizer.schedule.warmup=0.1"]) == {
        "optimizer": {"schedule": {"name": "cosine", "warmup": 0.1}}
    }
    assert merged("precision: {output: float32}", overrides=["precision=float64"]) == {"precision": "float64"}


def test_another_kind_of_scaling_carries_nothing_over():
    tree = merged(
        "precision: {scaling: {kind: dynamic, interval: 10}}", overrides=["precision.scaling={kind: static}"]
    )
    assert tree == {"precision": {"scaling": {"kind": "static"}}}
    tree = merged(
        "precision: {scaling: {kind: dynamic, interval: 10}}", overrides=["precision.scaling.min=2.0"]
    )
    assert tree == {"precision": {"scaling": {"kind": "dynamic", "interval": 10, "min": 2.0}}}


def test_mappings_with_keys_of_the_users_choice_are_replaced_by_a_file_and_merged_by_an_argument():
    base = "data: {columns: {text: a, label: b}, batch_size: 3}"
    assert merged(base, "data: {columns: {text: c}}") == {"data": {"columns": {"text": "c"}, "batch_size": 3}}
    assert merged(base, overrides=["data.columns.text=c"])["data"]["columns"] == {"text": "c", "label": "b"}
    assert merged(base, "data: {columns: {}}")["data"]["columns"] == {}


def test_null_under_an_argument_becomes_a_mapping(here):
    loaded = load_config("my_recipe.py:Tiny", ["trainer.early_stopping.patience=5"])
    assert loaded.config.trainer.early_stopping.patience == 5


def test_places_are_those_of_what_was_stated_last():
    layers = Merged([read_text("seed: 1\noptimizer:\n  lr: 3\n", "a.yaml"), *read_overrides(["seed=2"])])
    assert str(layers.locate(("seed",))) == "argument 'seed=2', key 'seed'"
    assert str(layers.locate(("optimizer", "lr"))) == "a.yaml:3:7, key 'optimizer.lr'"
    assert str(layers.locate(("optimizer", "lr"), True)) == "a.yaml:3:3, key 'optimizer.lr'"
    assert str(layers.locate(("optimizer", "betas"))) == "a.yaml:3:3, key 'optimizer.betas'"
    assert str(layers.locate(("trainer",))) == "a.yaml:1:1, key 'trainer'"


def test_findings_about_keys_get_their_place(here):
    (here / "a.yaml").write_text(
        "recipe: my_recipe.py:Tiny\nprecision:\n  layers:\n    'hed.*': {compute: float32}\n"
    )
    loaded = load_config("a.yaml")
    found = finding("L201", "the rule matches nothing", place=Place(key="precision.layers.hed.*"))
    (placed,) = loaded.placed([found])
    assert str(placed.place) == "a.yaml:4:14, key 'precision.layers.hed.*'"
    (device,) = loaded.placed([finding("H701", "cannot", place=Place(module="lstm"))])
    assert str(device.place) == "a.yaml:3:3, key 'precision', layer 'lstm'"
    with pytest.raises(ConfigError, match=r"a\.yaml:4:14"), loaded.placing():
        raise ConfigError(found)


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("a.b.c", ["a", "b", "c"]),
        ('precision.layers."encoder.*".compute', ["precision", "layers", "encoder.*", "compute"]),
        ('"a b"', ["a b"]),
        ("a..b", None),
        (".a", None),
        ("a.", None),
        ("", None),
        ("a b", None),
        ('"a', None),
        ('"a"b', None),
    ],
)
def test_dotted_keys(key, parts):
    assert split_key(key) == parts


def test_values_of_arguments_are_yaml():
    tree = merged("", overrides=["a=1e-3", "b=null", "c=[1, x]", "d={e: true}", "f=x=y", 'g."h.i"=1'])
    assert tree == {"a": 0.001, "b": None, "c": [1, "x"], "d": {"e": True}, "f": "x=y", "g": {"h.i": 1}}


# --- recipes' default configs ----------------------------------------------------------------------

PACKAGE = "from castiron.training import Recipe\n\nclass Mine(Recipe):\n    name = 'mine'\n\n"


@pytest.fixture
def package(here):
    folder = here / f"recipes_of_{here.name}"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "recipe.py").write_text(PACKAGE + "class Child(Mine):\n    pass\n")
    (folder / "default.yaml").write_text("recipe: recipe.py:Mine\nseed: 99\ndata: {columns: {text: a}}\n")
    return folder


def test_the_default_config_serves_where_the_recipe_is_named_and_not_beneath_a_file(package):
    recipe = find_recipe(f"{package}/recipe.py:Mine")
    assert default_config(recipe) == package / "default.yaml"
    assert load_config(f"{package}/recipe.py:Mine").config.seed == 99
    (package.parent / "b.yaml").write_text(
        f"recipe: {package.name}/recipe.py:Mine\ndata: {{columns: {{text: b}}}}\n"
    )
    config = load_config("b.yaml").config
    assert config.seed == RunConfig.model_fields["seed"].default
    assert config.data.columns == {"text": "b"}


def test_a_subclass_inherits_the_default_config(package):
    config = load_config(f"{package}/recipe.py:Child").config
    assert config.seed == 99
    assert config.recipe == f"{package}/recipe.py:Child"


def test_a_default_config_beside_a_loose_file_is_nobodys(here):
    (here / "default.yaml").write_text("recipe: somebody-elses\nseed: 99\n")
    assert default_config(find_recipe(f"{here}/my_recipe.py:Tiny")) is None


def test_configure_from_python(here):
    tiny = find_recipe(f"{here}/my_recipe.py:Tiny")
    config = configure(
        tiny, seed=3, model={"hidden": 2}, precision="bf16-mixed", data={"train": here / "x.csv"}
    )
    assert config.model == tiny.Config(hidden=2)
    assert config.recipe == name_of(tiny) == f"{here}/my_recipe.py:Tiny"
    assert config.data.train == str(here / "x.csv")
    with pytest.raises(ConfigError, match=r"Did you mean 'model\.hidden'"):
        configure(tiny, model={"hiden": 2})


def test_a_saved_config_is_the_same_config(here):
    from castiron.training.yaml_writer import as_yaml

    given = ["precision.layers.head={compute: float32}", "precision.output=float32", "data.train=a.csv",
             "optimizer.lr=3e-5", "guard.every=2", "model.dropout=0.25"]  # fmt: skip
    first = load_config("my_recipe.py:Tiny", given).config
    (here / "saved.yaml").write_text(as_yaml(first.resolved()))
    again = load_config("saved.yaml").config
    assert again == first
    assert again.resolved() == first.resolved()
