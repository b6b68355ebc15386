"""The example in docs/subclass.md, run as it stands: by path from the command line, and from Python."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from castiron.cli.main import run

PAGE = Path(__file__).parents[2] / "docs" / "subclass.md"
SMALL = ["trainer.limit_train=3", "trainer.limit_validation=2", "trainer.limit_test=2", "trainer.threads=1"]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """The current folder, with `my_recipe.py`, and the page's script that uses it."""
    recipe, script = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_recipe.py").write_text(recipe, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_recipe", raising=False)
    return tmp_path, script


def test_it_runs_by_its_path(example: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = example
    command = ["train", "my_recipe.py:ConvSentiment", "model.width=5", "trainer.max_epochs=1", *SMALL]
    assert run([*command, "--name", "x"]) == 0, capsys.readouterr().err
    plan = (folder / "runs" / "conv-sentiment" / "x" / "plan.json").read_text()
    assert '"lstm.conv"' in plan
    assert "lstm.ahead" not in plan
    assert run(["evaluate", "conv-sentiment/x"]) == 0, capsys.readouterr().err


def test_it_runs_from_python(
    example: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, script = example
    limits = '{"max_epochs": 1, "limit_train": 3, "limit_validation": 2, "limit_test": 2, "threads": 1}'
    assert '{"max_epochs": 1}' in script
    script = script.replace('{"max_epochs": 1}', limits)
    monkeypatch.syspath_prepend(folder)
    exec(compile(script, str(folder / "script.py"), "exec"), {"__name__": "script"})
    sys.modules.pop("my_recipe", None)
    assert "accuracy" in capsys.readouterr().out
