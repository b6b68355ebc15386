"""What a run ran on, without secrets."""

from __future__ import annotations

import json
import subprocess
import sys

from castiron.training.environment import describe_environment, git_state, versions


def test_it_is_json_and_names_versions(monkeypatch):
    monkeypatch.setenv("MY_SECRET_TOKEN", "hunter2-hunter2")
    text = json.dumps(describe_environment())
    assert "hunter2" not in text
    record = json.loads(text)
    assert record["versions"]["castiron"]
    assert record["versions"]["torch"]
    assert record["cpu"]
    assert record["cpus_usable"] >= 1
    assert record["python"] == ".".join(map(str, sys.version_info[:3]))


def test_no_framework_is_imported_for_a_version():
    code = (
        "import sys; from castiron.training.environment import describe_environment; describe_environment(); "
        "print([m for m in ('torch', 'tensorflow', 'lightning', 'keras') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert versions()["pydantic"]


def test_the_state_of_the_code(tmp_path):
    assert git_state(tmp_path) is None

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init", "-b", "trunk")
    (tmp_path / "recipe.py").write_text("x = 1\n")
    git("add", ".")
    git("commit", "-m", "first")
    state = git_state(tmp_path / "recipe.py")
    assert state["branch"] == "trunk"
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (tmp_path / "recipe.py").write_text("x = 2\n")
    assert git_state(tmp_path)["dirty"] is True
