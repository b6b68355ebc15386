"""The commands of docs/compare.md run, each for a step; its pictures are there, and small."""

from __future__ import annotations

import functools
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from pages import DOCS, blocks

from castiron.cli.main import run

PAGE = DOCS / "compare.md"
COMMANDS = [
    line for block in blocks(PAGE, "bash") for line in block.text.splitlines() if line.startswith("castiron")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command(line: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    from castiron_recipes.lstm_sentiment import recipe as sentiment

    monkeypatch.setattr(sentiment, "generate", functools.partial(sentiment.generate, rows=300))
    monkeypatch.chdir(tmp_path)
    small = ["trainer.limit_validation=1", "trainer.threads=1", "trainer.device=cpu"]
    if "matrix-product" in line:
        small.append("model.lengths=[16, 32, 64]")
    if "deep-relu" in line:
        small.append("model.depth=6")
    words = shlex.split(line)[1:]
    assert run([*words, *small, "--steps", "1", "--name", "page"]) == 0, capsys.readouterr().err
    folder = tmp_path / "runs/compare/page"
    assert (folder / "compare.html").exists() == ("--html" in words)
    record = json.loads((folder / "compare.json").read_text())
    assert all(s["status"] == "ran" for s in record["sides"])
    if "float32,bf16-mixed" in words:
        assert record["sides"][1]["parts"]["activations"] == "lstm.ahead.0"
        layers = record["sides"][1]["differences"]["0"]["activations"]
        assert [layers[n]["step"] for n in ("embedding", "lstm.ahead.0")] == ["rounded", "parted"]


def test_the_pictures() -> None:
    shown = re.findall(r"!\[.*?\]\((.*?)\)", PAGE.read_text(encoding="utf-8"))
    assert len(shown) == 5
    for name in shown:
        assert 5_000 < (PAGE.parent / name).stat().st_size < 150_000
