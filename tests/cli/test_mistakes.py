"""Every mistake: one clear message with its place, exit code 2, no traceback."""

from __future__ import annotations

import importlib.metadata
import json

import pytest

# Messages are asserted whole, on one line.
# ruff: noqa: E501

RECIPES = ", ".join(sorted(p.name for p in importlib.metadata.entry_points(group="castiron.recipes")))


@pytest.fixture
def tiny(user_recipe, fake_backend, tmp_path):
    (tmp_path / "a.yaml").write_text("recipe: my_recipe.py:Tiny\noptimizer:\n  lr: 1e-3\n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message", "remedy"),
    [
        # the config
        (["train", "a.yaml", "optimzer.lr=1"],
         "error X801  There is no such key. Received 'optimzer' at argument 'optimzer.lr=1', key 'optimzer'.",
         "Did you mean 'optimizer'?"),
        (["train", "a.yaml", "optimizer.lr=-1"],
         "error X803  Expected a number > 0. Received -1 at argument 'optimizer.lr=-1', key 'optimizer.lr'.",
         "Give a value within the range."),
        (["train", "a.yaml", "optimizer.lr=fast"],
         "error X802  Expected a number. Received 'fast' (text) at argument 'optimizer.lr=fast', key 'optimizer.lr'.",
         "Give a value of the expected type."),
        (["train", "a.yaml", "precision=bf16_mixd"],
         "error X805  Expected a preset (float64, float32, tf32, bf16-mixed, fp16-mixed, bf16-true, fp16-true, "
         "float8-mixed). Received 'bf16_mixd' at argument 'precision=bf16_mixd', key 'precision'.",
         "Did you mean 'bf16-mixed'?"),
        (["train", "b.yaml"], "error X808  There is no such file. Received 'b.yaml'.", "Did you mean 'a.yaml'?"),
        (["train", "lstm-sentimnet"],
         "error X808  There is no such config file, packaged config or recipe. Received 'lstm-sentimnet'.",
         "Did you mean 'lstm-sentiment'?"),
        (["train", "my_recipe.py:Tyni"],
         "error X809  'my_recipe.py' defines no 'Tyni'. At argument 'my_recipe.py:Tyni', key 'recipe'.",
         "Did you mean 'Tiny'?"),
        (["train", "a.yaml", "recipe=lstm-sentimnet"],
         f"error X809  Expected a registered recipe ({RECIPES}), my_file.py:MyRecipe or my.module:MyRecipe. "
         "Received 'lstm-sentimnet' at argument 'recipe=lstm-sentimnet', key 'recipe'.",
         "Did you mean 'lstm-sentiment'?"),
        (["train", "a.yaml", "optimizer.lr"],
         "error X813  Expected dotted.key=value. Received argument 'optimizer.lr'.",
         "Write key=value, such as optimizer.lr=3e-4; quote it where the shell would change it."),
        (["train", "a.yaml", "--optimizer.lr=3"], "error X820  No such option: --optimizer.lr.",
         "Overrides are written without dashes: optimizer.lr=VALUE."),
        (["train", "a.yaml", "backend=tensorflow"],
         "error X814  The recipe 'my_recipe.py:Tiny' has no model for this backend. Expected 'torch'. Received "
         "'tensorflow' at argument 'backend=tensorflow', key 'backend'.",
         "Name one of the recipe's backends."),
        # the plan and the device
        (["train", "a.yaml", "precision.layers.hed={compute: bfloat16}"],
         "error L201  The layer rule 'hed' matches nothing in the model. Expected a glob on module paths, or "
         "type:<class name>. Received 'hed' at argument 'precision.layers.hed={compute: bfloat16}', key "
         "'precision.layers.hed'.",
         "Did you mean 'head'? `castiron train CONFIG --dry-run` prints the plan."),
        # data
        (["train", "a.yaml", "data.train=nope.csv", "--dry-run"],
         "error D130  Expected a file. Received {tmp}/nope.csv, which does not exist at argument "
         "'data.train=nope.csv', key 'data.train'.", None),
        (["train", "a.yaml", "data.embedded=false", "--dry-run"],
         "error X804  This config is made for data of yours, and names none. Expected a path as data.train. "
         "Received null at argument 'data.embedded=false', key 'data.embedded'.",
         "Name the files: data.train=FILE data.validation=FILE data.test=FILE."),
        # names and places of runs
        (["train", "a.yaml", "--name", "a/b"],
         "error X820  The run's name cannot be that of a folder. Expected letters, digits, '.', '_', '-', '+' or "
         "'=', 100 at most. Received 'a/b'.", "Choose another --name."),
        (["train", "a.yaml", "--runs", "a.yaml"],
         "error X819  The file cannot be written: a part of the path is a file. At a.yaml/tiny.",
         "Make room, or choose another folder with --runs."),
        (["train", "--resume", "tiny/first"],
         "error X818  There is no such run. Expected a run's folder, or <recipe>/<name> below 'runs'. Received "
         "'tiny/first'.", "Give the run's folder, or <recipe>/<name> below --runs."),
        (["evaluate", "nope"],
         "error X818  There is no such run. Expected a run's folder, or <recipe>/<name> below 'runs'. Received "
         "'nope'.", "Give the run's folder, or <recipe>/<name> below --runs."),
        (["board", "nope"], "error X818  There is no such folder of runs. At nope.",
         "Train something first, or give the folder: castiron board DIR."),
        # arguments
        (["trian"], "error X820  No such command 'trian'. Did you mean 'train'?", "See castiron --help."),
        (["train"], "error X820  CONFIG is missing.", "Name a config or a recipe, such as lstm-sentiment."),
        (["train", "a.yaml", "--quiet", "--verbose"], "error X820  --quiet and --verbose exclude each other.",
         "Give one of the two."),
        (["train", "--resume", "x", "--name", "y"],
         "error X820  --resume goes on under the run's own name.", "Leave out --name."),
        (["predict", "x"], "error X820  TEXT is missing.", 'Give texts ("a good film") or --file FILE.'),
        (["evaluate", "x", "--split", "tets"],
         "error X820  Expected train, validation or test after --split. Received 'tets'.", "Did you mean 'test'?"),
        (["policy", "show", "bf16_mixd"],
         "error X805  Expected a preset (float64, float32, tf32, bf16-mixed, fp16-mixed, bf16-true, fp16-true, "
         "float8-mixed). Received 'bf16_mixd' at argument 'bf16_mixd'.", "Did you mean 'bf16-mixed'?"),
        (["rules", "X999"], "error X820  There is no such rule. Expected a code such as X801. Received 'X999'.", None),
        (["recipes", "copy", "lstm", "x"], "error X809  Expected a registered recipe. Received 'lstm'.",
         f"There are: {RECIPES}."),
        (["configs", "copy", "lstm_sentiment/defaut", "x.yaml"],
         "error X808  There is no such packaged config. Received 'lstm_sentiment/defaut'.",
         "Did you mean 'lstm_sentiment/default'?"),
        (["configs", "copy", "lstm_sentiment/default", "a.yaml"],
         "error X824  There is such a file already; nothing is overwritten. At a.yaml.",
         "Choose another name, or move the file away."),
        (["data", "fetch", "sst3"], "error D160  There is no data set 'sst3' to fetch. Did you mean 'sst2'?", None),
        (["doctor", "--device", "gpu"],
         "error X820  Expected auto, cpu or cuda after --device. Received 'gpu'.", None),
    ],
)  # fmt: skip
def test_one_message_and_exit_code_2(castiron, tiny, arguments, message, remedy):
    said = castiron(*arguments)
    assert said.code == 2
    assert "Traceback" not in said.err
    first, second = said.err.splitlines()[:2]
    assert first.startswith(message.replace("{tmp}", str(tiny)))
    if remedy is not None:
        assert first == message.replace("{tmp}", str(tiny))
        assert second == f"  → {remedy}"
        assert len(said.err.splitlines()) == 2
    assert not (tiny / "runs" / "tiny").exists() or not list((tiny / "runs" / "tiny").iterdir())


def test_a_preset_that_the_device_cannot_run(castiron, tiny):
    said = castiron("train", "a.yaml", "precision=tf32")
    assert said.code == 2
    assert said.err.startswith(
        "error H701  A test CPU cannot run lstm layers in tf32: the kernel does not exist."
    )
    assert "at argument 'precision=tf32', key 'precision', layer 'encoder'." in said.err
    assert "  → Nearest that works: use precision: float32." in said.err
    assert "Traceback" not in said.err


def test_all_mistakes_of_a_file_at_once(castiron, tiny):
    (tiny / "b.yaml").write_text(
        "recipe: my_recipe.py:Tiny\nsed: 1\noptimizer:\n  lr: -1\nmodel: {hiden: 3}\n"
    )
    said = castiron("train", "b.yaml")
    places = [line.rpartition(" at ")[2] for line in said.err.splitlines() if line.startswith("error")]
    assert places == [
        "b.yaml:2:1, key 'sed'.", "b.yaml:4:7, key 'optimizer.lr'.", "b.yaml:5:9, key 'model.hiden'.",
    ]  # fmt: skip
    assert said.code == 2


def test_the_traceback_is_there_for_whoever_asks(castiron, tiny):
    for arguments in (["--traceback", "train", "b.yaml"], ["train", "b.yaml", "--traceback"]):
        said = castiron(*arguments)
        assert said.code == 2
        assert "Traceback (most recent call last):" in said.err
        assert "error X808" in said.err


def test_a_bug_keeps_its_traceback_and_says_that_it_is_one(castiron, tiny, fake_backend):
    def crash(job):
        raise ZeroDivisionError("planted")

    fake_backend.behave = staticmethod(crash)
    said = castiron("train", "a.yaml")
    assert said.code == 1
    assert "Traceback (most recent call last):" in said.err
    assert "ZeroDivisionError: planted" in said.err
    assert "This is a bug, in castiron or in the recipe's own code" in said.err


def test_errors_for_programs(castiron, tiny):
    said = castiron("evaluate", "nope", "--json")
    assert said.code == 2
    assert said.err == ""
    (found,) = json.loads(said.out)["findings"]
    assert found["code"] == "X818"
    assert found["remedy"]


def test_help_without_a_command(castiron):
    for arguments in ([], ["policy"], ["data"]):
        said = castiron(*arguments)
        assert said.code == 2
        assert said.out.startswith("Usage: castiron")
        assert said.err == ""
