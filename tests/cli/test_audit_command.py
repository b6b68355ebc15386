"""`castiron audit` and `castiron verify`."""

from __future__ import annotations

import json

import pytest

MODULE = """
import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 2)

    def forward(self, x):
        return self.body(x) * torch.from_numpy(np.ones(2))


def faulty():
    return Net()


def clean():
    return nn.Linear(3, 2)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "nets_to_audit.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "nets_to_audit"


def test_any_model(castiron, module):
    said = castiron("audit", f"{module}:faulty", "--input", "float32[8,16,3]", "--policy", "bf16-mixed")
    assert said.code == 1
    assert "Audit failed: " in said.out
    assert "F301" in said.out
    assert "nets_to_audit.py:13" in said.out
    said = castiron("audit", f"{module}:clean", "--input", "float32[8,16,3]", "--phase", "--all")
    assert said.code == 0
    assert "forward:" in said.out
    assert "no loss was given" in said.out


def test_forms(castiron, module, tmp_path):
    asked = ("audit", f"{module}:faulty", "--input", "float32[8,3]", "--format")
    record = json.loads(castiron(*asked, "json").out)
    assert (record["ok"], record["findings"][0]["code"]) == (False, "F301")
    log = json.loads(castiron(*asked, "sarif").out)
    assert log["runs"][0]["results"][0]["ruleId"] == "F301"
    said = castiron(*asked, "html", "-o", "audit.html")
    assert said.out.startswith("Audit failed")
    assert "<table>" in (tmp_path / "audit.html").read_text()


def test_inputs_that_cannot_be_read(castiron, module):
    said = castiron("audit", f"{module}:clean", "--input", "float31[8]")
    assert said.code == 2
    assert "X820" in said.err
    assert "float32[8,16,3], int64[8,32]<100 or mask=bool[8,32]" in said.err
    said = castiron("audit", f"{module}:clean")
    assert said.code == 2
    assert "A model by itself needs example inputs." in said.err


def test_functions_that_are_not_there(castiron, module):
    said = castiron("audit", f"{module}:nothing", "--input", "float32[8,3]")
    assert said.code == 2
    assert "The model's function cannot be found" in said.err


def test_verify(castiron, module, tmp_path):
    castiron("audit", f"{module}:faulty", "--input", "float32[8,3]", "--format", "json", "-o", "audit.json")
    said = castiron("verify", str(tmp_path))
    assert said.code == 1
    assert said.out.startswith("failed: ")
    assert "F301" in said.err
    castiron("audit", f"{module}:clean", "--input", "float32[8,3]", "--format", "json", "-o", "audit.json")
    assert castiron("verify", str(tmp_path)).code == 0
    assert json.loads(castiron("verify", str(tmp_path), "--json").out)["ok"] is True
    said = castiron("verify", str(tmp_path / "nowhere"))
    assert said.code == 2
    assert "F329" in said.err
