"""The Python of docs/trust.md is run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "trust.md"


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
    exec(compile(block, str(PAGE), "exec"), {})
    said = capsys.readouterr().out
    assert said.startswith("C606 2 parameters of the checkpoint are in another format.")
    assert "C619 2 tensors of the checkpoint were cast." in said
