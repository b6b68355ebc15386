"""The examples of docs/audit.md, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "audit.md"


def test_the_examples(tmp_path: Path, capsys: Any) -> None:
    torch.set_num_threads(1)
    text = PAGE.read_text(encoding="utf-8")
    first, second = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    file = tmp_path / "tagger.py"
    file.write_text(first)
    names: dict[str, Any] = {}
    exec(compile(first, str(file), "exec"), names)
    said = capsys.readouterr().out
    (found,) = names["report"].findings
    assert found.code == "F301"
    line = next(n for n, t in enumerate(first.splitlines(), 1) if "self.scale)" in t)
    assert found.place.line == line
    shown = " ".join(re.findall(r"```text\n(.*?)```", text, re.DOTALL)[0].split())
    for part in (
        "warning F301 An operation got floating-point tensors of different formats, and computed in the",
        "mul meets bfloat16 with float32 and computes in float32, because of parameter 'scale'.",
        "Expected operands in bfloat16. Received bfloat16[8,20,32], float32[32] at",
    ):
        assert part in shown
        assert part in " ".join(said.split())
    assert f"tagger.py, line {line}, the model itself, mul (forward)" in shown
    exec(compile(second, "test_it.py", "exec"), names)
    names["test_formats"]()
