"""validate, policy, recipes, configs, rules, doctor, board, data."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request

import jsonschema
import pytest

from castiron.training.configs import packaged_configs

# --- validate --------------------------------------------------------------------------------------


def test_validate_reports_every_file(castiron, user_recipe, fake_backend, tmp_path):
    (tmp_path / "good.yaml").write_text("recipe: my_recipe.py:Tiny\nprecision: bf16-mixed\n")
    (tmp_path / "bad.yaml").write_text("recipe: my_recipe.py:Tiny\nsed: 3\nlr: 3\n")
    said = castiron("validate", "good.yaml", "bad.yaml", "missing.yaml")
    assert said.code == 2
    assert said.out.splitlines() == ["✓ good.yaml", "✗ bad.yaml  2 errors", "✗ missing.yaml  1 error"]
    assert said.err.count("error X801") == 2
    assert said.err.count("error X808") == 1
    said = castiron("validate", "good.yaml", "bad.yaml", "--json")
    assert said.code == 2
    good, bad = json.loads(said.out)
    assert (good["config"], good["valid"], good["findings"]) == ("good.yaml", True, [])
    assert [f["place"]["line"] for f in bad["findings"]] == [2, 3]
    assert castiron("validate", "good.yaml").code == 0


def test_validate_looks_at_device_and_data(castiron, user_recipe, fake_backend, tmp_path):
    (tmp_path / "a.yaml").write_text(
        "recipe: my_recipe.py:Tiny\nprecision: tf32\ndata:\n  train: [there.csv, not_there.csv]\n"
    )
    (tmp_path / "there.csv").write_text("text,label\na,1\n")
    said = castiron("validate", "a.yaml")
    assert said.code == 2
    assert "error H701  A test CPU cannot run matmul layers in tf32" in said.err
    assert (
        f"Received {tmp_path}/not_there.csv, which does not exist at a.yaml:4:10, key 'data.train'."
        in said.err
    )
    (tmp_path / "b.yaml").write_text("recipe: my_recipe.py:Tiny\nprecision: fp16-mixed\n")
    said = castiron("validate", "b.yaml")
    assert said.code == 0
    assert (
        "warning H702  A test CPU runs matmul layers in float16 by emulation, measured at 3.2 times"
        in said.err
    )


@pytest.mark.parametrize("name", packaged_configs())
def test_every_packaged_config_is_valid(castiron, name):
    said = castiron("validate", name)
    assert said.code == 0, said.err
    assert said.out == f"✓ {name}\n"


@pytest.mark.parametrize("path", packaged_configs().values(), ids=packaged_configs())
def test_every_packaged_config_says_what_it_is_and_how_to_launch_it(path):
    text = path.read_text(encoding="utf-8")
    header = text.partition("\n\n")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert "Needs" in header
    assert "castiron train " in header


# --- policy ----------------------------------------------------------------------------------------


def test_policy_list(castiron):
    said = castiron("policy", "list")
    assert said.out.splitlines()[0].split() == ["preset", "what", "it", "is", "also", "called"]
    assert any(line.startswith("bf16-mixed ") and "mixed_bfloat16" in line for line in said.out.splitlines())
    names = [p["name"] for p in json.loads(castiron("policy", "list", "--json").out)]
    assert names[:2] == ["float64", "float32"]


def test_policy_show(castiron):
    said = castiron("policy", "show", "mixed_bfloat16")
    assert said.out.splitlines()[:2] == ["bf16-mixed", "string  p=float32,c=bfloat16,o=bfloat16"]
    assert "compute     bfloat16  What layers multiply in. Follows `param`." in said.out
    record = json.loads(castiron("policy", "show", "p=float32,c=bfloat16,o=float32", "--json").out)
    assert record["string"] == "p=float32,c=bfloat16,o=float32"
    assert record["policy"]["compute"] == "bfloat16"
    from castiron.policy import PrecisionPolicy

    assert PrecisionPolicy.model_validate(record["policy"]).hash() == record["hash"]


def test_policy_show_refuses_with_near_misses(castiron):
    said = castiron("policy", "show", "p=float32,c=flot16")
    assert said.code == 2
    assert "Received 'flot16' at argument 'p=float32,c=flot16', key 'compute'." in said.err


def test_policy_schema(castiron):
    schema = json.loads(castiron("policy", "schema").out)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert not list(validator.iter_errors("bf16-mixed"))
    assert list(validator.iter_errors({"comput": "float32"}))


# --- recipes ---------------------------------------------------------------------------------------


def test_recipes_list(castiron):
    listed = json.loads(castiron("recipes", "list", "--json").out)
    assert all(one["what"] and one["configs"] for one in listed)
    (ours,) = (one for one in listed if one["name"] == "lstm-sentiment")
    assert "lstm_sentiment/default" in ours["configs"]
    lines = castiron("recipes", "list").out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == sorted(one["name"] for one in listed)


def test_recipes_show(castiron, user_recipe):
    said = castiron("recipes", "show", "my_recipe.py:Tiny")
    assert said.out.splitlines()[:2] == ["tiny", "A tiny recipe."]
    rows = [line.split(maxsplit=1) for line in said.out.splitlines()]
    assert ["hidden", "whole number > 0  8        Size of the state."] in rows
    assert ["pooling", 'max | mean        "max"    How states are pooled.'] in rows
    record = json.loads(castiron("recipes", "show", "lstm-sentiment", "--json").out)
    assert record["default_config"].endswith("configs/lstm_sentiment/default.yaml")
    assert {"key", "type", "default", "help"} == set(record["model"][0])
    assert all(row["help"] for row in record["model"])


def test_recipes_copy_makes_a_project(castiron, tmp_path):
    said = castiron("recipes", "copy", "lstm-sentiment", "My Sentiment 2")
    assert said.code == 0
    folder = tmp_path / "My Sentiment 2"
    package = folder / "my_sentiment_2"
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert {
        "README.md",
        "tests/test_recipe.py",
        "my_sentiment_2/recipe.py",
        "my_sentiment_2/default.yaml",
    } <= files
    assert not any("castiron_recipes.lstm_sentiment" in p.read_text() for p in package.glob("*.py"))
    assert (package / "default.yaml").read_text().count("recipe: recipe.py:LSTMSentiment") == 1
    record = json.loads(
        castiron("recipes", "show", "My Sentiment 2/my_sentiment_2/recipe.py:LSTMSentiment", "--json").out
    )
    assert record["name"] == "my-sentiment-2"
    assert record["class"] == "my_sentiment_2.recipe:LSTMSentiment"
    assert record["default_config"] == str(package / "default.yaml")
    said = castiron("validate", *sorted(str(p) for p in package.glob("*.yaml")))
    assert said.code == 0, said.err
    again = castiron("recipes", "copy", "lstm-sentiment", "My Sentiment 2")
    assert again.code == 2
    assert "error X824  The folder is not empty; nothing is overwritten. At My Sentiment 2." in again.err


# --- configs ---------------------------------------------------------------------------------------


def test_configs_list_and_copy(castiron, tmp_path):
    names = [c["name"] for c in json.loads(castiron("configs", "list", "--json").out)]
    assert names == sorted(packaged_configs())
    assert castiron("configs", "copy", "lstm_sentiment/sst2", "mine/my.yaml").code == 0
    assert (tmp_path / "mine/my.yaml").read_text() == packaged_configs()["lstm_sentiment/sst2"].read_text()
    assert castiron("configs", "copy", "lstm_sentiment/sst2", "mine").out.startswith("mine/sst2.yaml\n")


def test_configs_schema(castiron):
    for arguments in ([], ["lstm-sentiment"]):
        schema = json.loads(castiron("configs", "schema", *arguments).out)
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["properties"]["trainer"]["description"]
    assert "hidden" in schema["properties"]["model"]["properties"]


# --- rules -----------------------------------------------------------------------------------------


def test_rules(castiron):
    assert "X801  unknown-key" in castiron("rules").out
    family = castiron("rules", "x8").out.splitlines()
    assert all(line.startswith("X8") for line in family[1:])
    one = castiron("rules", "X801").out
    assert one.splitlines()[0] == "X801  unknown-key  (error)"
    assert "    optimizer: {learning_rate: 0.001}" in one
    assert json.loads(castiron("rules", "X801", "--json").out)[0]["name"] == "unknown-key"


# --- doctor ----------------------------------------------------------------------------------------


def test_doctor(castiron, fake_backend, tmp_path):
    said = castiron("doctor")
    assert said.code == 0, said.out
    lines = said.out.splitlines()
    assert lines[0].startswith("✓ 1. Python  3.")
    assert "✓ 4. Device  cpu: A test CPU (avx512_bf16)" in lines
    assert any(line.split()[:3] == ["layers", "float64", "float32"] for line in lines)
    assert any(line.split()[0] == "lstm" and line.split()[-1] == "–" for line in lines)
    told = {
        line.split()[0]: line.strip().partition("  ")[2].strip() for line in lines if line.startswith("     ")
    }
    assert told["float32"] == "runs"
    assert told["bf16-mixed"] == "runs"
    assert told["fp16-mixed"].startswith(
        "refused for lstm; the others run by emulation (time relative to float32: matmul 3.2×). "
        "Nearest that works:"
    )
    assert told["tf32"] == "refused. Nearest that works: use precision: float32."
    checks = json.loads(castiron("doctor", "--json").out)
    assert {"Python", "castiron", "Device", "Number formats", "Presets here", "Runs"} <= {
        c["title"] for c in checks
    }


def test_doctor_says_what_is_missing(castiron, fake_backend, monkeypatch):
    from castiron.training import backend

    home = ("castiron_fake_backend", "FakeBackend", "no_such_torch", "pip install castiron")
    monkeypatch.setitem(backend._HOMES, "torch", home)
    said = castiron("doctor")
    assert said.code == 1
    assert (
        "✗ 4. Device  The backend 'torch' needs the package 'no_such_torch', which is not installed."
        in said.out
    )


# --- data ------------------------------------------------------------------------------------------


def test_data_check(castiron, user_recipe, tmp_path):
    said = castiron("data", "check", "my_recipe.py:Tiny")
    assert said.code == 0
    assert "train: 20 rows" in said.out
    assert any(line.startswith("label") and "int64" in line for line in said.out.splitlines())
    (tmp_path / "bad.csv").write_text("text,label\na,x\nb,1\n")
    said = castiron("data", "check", "my_recipe.py:Tiny", "data.train=bad.csv")
    assert said.code == 2
    assert "Received 'x'" in said.err
    assert "bad.csv:2, column 2" in said.err
    record = json.loads(castiron("data", "check", "my_recipe.py:Tiny", "data.train=bad.csv", "--json").out)
    assert record["train"]["bad_cells"][0]["received"]
    said = castiron("data", "check", "my_recipe.py:Tiny", "data.train=nope.csv")
    assert said.code == 2
    assert "nope.csv, which does not exist at argument 'data.train=nope.csv', key 'data.train'." in said.err


def test_data_describe(castiron, user_recipe, tmp_path):
    (tmp_path / "a.yaml").write_text("recipe: my_recipe.py:Tiny\ndata: {columns: {text: [a, b]}}\n")
    said = castiron("data", "describe", "a.yaml")
    assert said.out.splitlines()[1].split()[:6] == ["text", "text", "text", "a", "or", "b"]
    assert json.loads(castiron("data", "describe", "a.yaml", "--json").out)["fields"][1]["dtype"] == "int64"


def test_data_fetch_lists_what_there_is(castiron):
    assert any(line.startswith("sst2 ") for line in castiron("data", "fetch").out.splitlines())
    assert json.loads(castiron("data", "fetch", "--json").out)[0]["name"] == "sst2"


def test_data_fetch_offline_is_one_message(castiron, monkeypatch):
    def offline(*arguments: object, **options: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    said = castiron("data", "fetch", "sst2", "--cache", "cache")
    assert said.code == 2
    assert said.err.startswith("error D161")
    assert "Traceback" not in said.err


# --- board -----------------------------------------------------------------------------------------


def test_a_port_that_is_taken(castiron, tmp_path):
    (tmp_path / "runs").mkdir()
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = castiron("board", "--port", str(port))
    assert said.code == 2
    assert f"error X820  Port {port} on localhost cannot be used." in said.err


@pytest.mark.slow
def test_the_board_opens(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "castiron.cli", "board", str(tmp_path), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"TensorBoard on http://localhost:{port}/  (Ctrl-C ends it)\n"
        for _ in range(120):
            try:
                with urllib.request.urlopen(f"http://localhost:{port}/", timeout=5) as page:
                    assert "TensorBoard" in page.read().decode()
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail("TensorBoard did not answer")
    finally:
        process.send_signal(2)
        code = process.wait(timeout=20)
        process.communicate()
    assert code == 0
