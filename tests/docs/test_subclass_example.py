"""The example in docs/subclass.md, run as it stands: by path from the command line, and from Python."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "subclass.md"
SMALL = ["trainer.limit_train=3", "trainer.limit_validation=2", "trainer.limit_test=2", "trainer.threads=1"]


@pytest.fixture
def example(tmp_path: Path) -> tuple[Path, str]:
    """A folder with `my_recipe.py`, and the page's script that uses it."""
    recipe, script = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_recipe.py").write_text(recipe, encoding="utf-8")
    return tmp_path, script


def test_it_runs_by_its_path(example: tuple[Path, str]) -> None:
    folder, _ = example
    command = [sys.executable, "-m", "castiron", "train", "my_recipe.py:ConvSentiment", "model.width=5"]
    done = subprocess.run(
        [*command, "trainer.max_epochs=1", *SMALL, "--name", "x"],
        cwd=folder, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    plan = (folder / "runs" / "conv-sentiment" / "x" / "plan.json").read_text()
    assert '"lstm.conv"' in plan
    assert "lstm.ahead" not in plan
    again = subprocess.run(
        [sys.executable, "-m", "castiron", "evaluate", "conv-sentiment/x"],
        cwd=folder, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr


def test_it_runs_from_python(example: tuple[Path, str]) -> None:
    folder, script = example
    limits = '{"max_epochs": 1, "limit_train": 3, "limit_validation": 2, "limit_test": 2, "threads": 1}'
    script = script.replace('{"max_epochs": 1}', limits)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
