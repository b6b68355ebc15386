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

from castiron import audit
from castiron.diagnostics import AuditError, CastironError
from castiron.torch.audit.errors import dtype_errors

torch.set_num_threads(1)

PAGE = Path(__file__).parents[2] / "docs" / "casebook.md"
TOP, *TEXTS = PAGE.read_text(encoding="utf-8").split("\n## ")
SECTIONS = {text.partition("\n")[0]: text for text in TEXTS}
CLAIMS_OF_ARTICLES = (5, 10, 7, 5, 7)
FOUND = re.compile(r"^castiron: \*\*(\w+)\*\* at the (data|plan|audit|step)", re.MULTILINE)


def run(code: str, file: Path) -> tuple[dict[str, Any], Exception | None]:
    """Names that a snippet leaves behind, and its error."""
    file.write_text(code)
    names: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "np": np}
    try:
        exec(compile(code, str(file), "exec"), names)
    except AssertionError:
        raise
    except Exception as e:
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
def test_section(title, tmp_path, monkeypatch):
    text = SECTIONS[title]
    if "import keras" in text:
        pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    said = re.search(r"^Really: `(\w+): (.*)`", text, re.MULTILINE)
    names, error = run(blocks[0], tmp_path / "written.py")
    if said is None:
        assert "Really: " in text
        assert error is None, error
    else:
        assert type(error).__name__ == said.group(1)
        assert said.group(2) in str(error)
    found = FOUND.search(text)
    if found is not None and found.group(2) in ("data", "plan"):
        _, error = run(blocks[1], tmp_path / "refused.py")
        assert isinstance(error, CastironError), error
        assert found.group(1) in [f.code for f in error.findings]
    elif found is not None and found.group(2) == "audit":
        assert found.group(1) in [f.code for f in report(names).findings], report(names).as_text(all=True)
    elif found is not None:
        assert error is not None
        with pytest.raises(AuditError, match=found.group(1)):
            translated(error, names["model"])
    elif "batch" in names:
        assert [str(f) for f in report(names).findings if f.severity != "info"] == []
    if "Mended:" in text:
        mended, error = run(blocks[-1], tmp_path / "mended.py")
        assert error is None, error
        if "model" in mended:
            assert [str(f) for f in report(mended).findings if f.severity != "info"] == []


def test_the_table_has_every_section_and_every_claim():
    rows = re.findall(r"^\| ([\d., ]*)\| (.+?) \| (.*?) ?\|$", TOP, re.MULTILINE)
    said = {
        title: ", ".join(found.groups()) if (found := FOUND.search(t)) else ""
        for title, t in SECTIONS.items()
    }
    assert {title: stage for _, title, stage in rows} == said
    claims = {f"{a}.{n}" for a, count in enumerate(CLAIMS_OF_ARTICLES) for n in range(1, count + 1)}
    assert {number for numbers, _, _ in rows for number in re.findall(r"[\d.]+", numbers)} == claims
