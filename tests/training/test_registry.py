"""Recipes by name, by file and by module; whatever goes wrong is one message with the user's own line."""

# Messages are asserted whole, on one line.
# ruff: noqa: E501

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from castiron.diagnostics import ConfigError
from castiron.training import Recipe
from castiron.training.registry import (
    absolute_name,
    find_recipe,
    headline,
    module_file,
    recipe_file,
    registered,
)


def refused(name: str, **options) -> str:
    with pytest.raises(ConfigError) as error:
        find_recipe(name, **options)
    (found,) = error.value.findings
    return str(found)


def test_ours_is_registered_like_anybodys():
    found = registered()["lstm-sentiment"]
    assert found.target == "castiron_recipes.lstm_sentiment:LSTMSentiment"
    assert found.package.startswith("castiron ")


def test_listing_imports_nothing():
    code = (
        "import sys; from castiron.training.registry import registered, headline; "
        "[headline(r) for r in registered().values()]; "
        "print([m for m in sys.modules if m.split('.')[0] in ('castiron_recipes', 'torch', 'numpy', 'pyarrow')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_headline_is_read_from_the_source():
    assert headline(registered()["lstm-sentiment"])
    assert module_file("castiron.training.registry").name == "registry.py"
    assert module_file("castiron.training").name == "__init__.py"
    assert module_file("no_such_module_at_all") is None


def test_a_file_is_imported_under_a_stable_name(user_recipe):
    tiny = find_recipe(f"{user_recipe}:Tiny")
    assert issubclass(tiny, Recipe)
    assert tiny is find_recipe(f"{user_recipe}:Tiny")
    assert recipe_file(tiny) == user_recipe
    assert pickle.loads(pickle.dumps(tiny)) is tiny
    assert pickle.loads(pickle.dumps(tiny.Config(hidden=3))) == tiny.Config(hidden=3)
    code = f"from castiron.training.registry import find_recipe; print(find_recipe({f'{user_recipe}:Tiny'!r}).__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == tiny.__module__


def test_a_file_imports_its_neighbours(tmp_path):
    (tmp_path / "neighbour_of_the_recipe.py").write_text("HIDDEN = 7\n")
    (tmp_path / "with_neighbour.py").write_text(
        "from neighbour_of_the_recipe import HIDDEN\nfrom castiron.training import Recipe\n\n"
        "class Mine(Recipe):\n    name = 'mine'\n    hidden = HIDDEN\n"
    )
    assert find_recipe(f"{tmp_path}/with_neighbour.py:Mine").hidden == 7


def test_a_module_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "recipes_of_mine.py").write_text(
        "from castiron.training import Recipe\n\nclass Mine(Recipe):\n    name = 'mine'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert find_recipe("recipes_of_mine:Mine").name == "mine"


def test_names_that_are_not_there(user_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused("lstm_sentiment").endswith("Did you mean 'lstm-sentiment'?")
    assert "`castiron recipes list` names them" in refused("qqqqqq")
    assert refused("my.module.Class").endswith("A class in a module is named as my.module:Class.")
    assert refused("my_recipe.py:Tyni") == (
        "X809 'my_recipe.py' defines no 'Tyni'. At key 'recipe'. Did you mean 'Tiny'?"
    )
    assert refused("my_recipe.py") == (
        "X809 The recipe's class is not named. At key 'recipe'. Write my_recipe.py:Tiny."
    )
    assert refused("no_such_package.recipes:Mine") == (
        "X808 There is no module 'no_such_package.recipes'. At key 'recipe'. "
        "Correct the name, or start castiron from the folder that holds it."
    )


def test_what_is_no_recipe(user_recipe):
    assert refused(f"{user_recipe}:helper") == (
        f"X811 Expected a subclass of castiron.training.Recipe. Received the function 'helper' of '{user_recipe}' "
        "at key 'recipe'. Name a class that subclasses castiron.training.Recipe, or a recipe's name."
    )
    assert "Received the class 'Path' of 'pathlib'" in refused("pathlib:Path")


def test_a_recipe_needs_a_name(tmp_path):
    (tmp_path / "nameless.py").write_text(
        "from castiron.training import Recipe\n\nclass MyOwn(Recipe):\n    pass\n"
    )
    assert refused(f"{tmp_path}/nameless.py:MyOwn").endswith('Give the class a line such as: name = "my-own"')


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import os\nimport tocrh\n", "at {path}:2: ModuleNotFoundError: No module named 'tocrh'"),
        ("x = 1\n\ny = x / 0\n", "at {path}:3: ZeroDivisionError: division by zero"),
        ("def f():\n    raise RuntimeError('no')\n\nf()\n", "at {path}:2: RuntimeError: no"),
        ("import json\njson.loads('{')\n", "at {path}:2: JSONDecodeError"),
        ("import sys\nsys.exit(3)\n", "at {path}:2: SystemExit: 3"),
        ("from castiron.training import Recipe\nclass A(Recipe):\n    class Config(Recipe.Config):\n        x: Nope\n",
         "at {path}:4: NameError"),
    ],
)  # fmt: skip
def test_a_file_that_fails_to_import_is_one_message_with_its_line(tmp_path, source, told):
    path = tmp_path / "broken.py"
    path.write_text(source)
    message = refused(f"{path}:Mine")
    assert message.startswith(f"X810 The recipe '{path}' fails to import {told.format(path=path)}")
    assert message.endswith("Correct the line shown; --traceback shows the whole traceback.")
    assert "Traceback" not in message


def test_a_file_that_is_no_python(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("x = 1\ndef f(:\n")
    assert refused(f"{path}:Mine").startswith(
        f"X810 The recipe's file is not valid Python: invalid syntax at {path}:2."
    )


def test_absolute_names(user_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_name("my_recipe.py:Tiny") == f"{tmp_path}/my_recipe.py:Tiny"
    assert absolute_name("lstm-sentiment") == "lstm-sentiment"
    assert absolute_name("a.module:Class") == "a.module:Class"
