"""Every section of the casebook: what really happens, what castiron reports, and the mended code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from castiron.diagnostics import AuditError
from castiron.torch.audit import audit
from castiron.torch.audit.errors import dtype_errors

torch.set_num_threads(1)

PAGE = Path(__file__).parents[2] / "docs" / "casebook.md"
SECTIONS = {text.partition("\n")[0]: text for text in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]}


def run(code: str, file: Path) -> tuple[dict[str, Any], Exception | None]:
    """Names that a snippet leaves behind, and its error."""
    file.write_text(code)
    names: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "np": np}
    try:
        exec(compile(code, str(file), "exec"), names)
    except (RuntimeError, ValueError, TypeError, AttributeError) as e:
        return names, e
    return names, None


def report(names: dict[str, Any]) -> Any:
    arguments = {key: names[key] for key in ("loss", "optimizer", "as_is") if key in names}
    return audit(names["model"], names["batch"], names.get("policy", "float32"), **arguments)


def translated(error, model):
    with dtype_errors(model):
        raise error


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("title", SECTIONS)
def test_section(title, tmp_path):
    text = SECTIONS[title]
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    said = re.search(r"^Really: `(\w+): (.*)`", text, re.MULTILINE)
    names, error = run(blocks[0], tmp_path / "written.py")
    if said is None:
        assert "Really: " in text
        assert error is None, error
    else:
        assert type(error).__name__ == said.group(1)
        assert str(error).startswith(said.group(2))
    found = re.search(r"^castiron: \*\*(\w+)\*\* at the (audit|step)", text, re.MULTILINE)
    if found is not None and found.group(2) == "audit":
        assert found.group(1) in [f.code for f in report(names).findings], report(names).as_text(all=True)
    elif found is not None:
        assert error is not None
        with pytest.raises(AuditError, match=found.group(1)):
            translated(error, names["model"])
    if "Mended:" in text:
        mended, error = run(blocks[1], tmp_path / "mended.py")
        assert error is None
        assert [str(f) for f in report(mended).findings if f.severity != "info"] == []


def test_there_are_enough():
    assert len(SECTIONS) >= 18
