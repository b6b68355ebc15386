"""The examples of docs/keras_audit.md, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "keras_audit.md"


def test_the_example(tmp_path: Path, capsys: Any) -> None:
    text = PAGE.read_text(encoding="utf-8")
    program, at_work = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    file = tmp_path / "scaled.py"
    file.write_text(program)
    names: dict[str, Any] = {}
    exec(compile(program, str(file), "exec"), names)
    said = " ".join(capsys.readouterr().out.split())
    shown = " ".join(re.findall(r"```text\n(.*?)```", text, re.DOTALL)[0].split())
    assert shown in said
    (found,) = names["report"].errors
    line = next(n for n, t in enumerate(program.splitlines(), 1) if "linspace" in t)
    assert (found.code, found.place.line, found.place.module) == ("F301", line, "scaled")
    exec(compile(at_work, str(tmp_path / "at_work.py"), "exec"), {})
    assert "nothing found" in capsys.readouterr().out
