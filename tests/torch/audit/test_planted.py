"""Small models with one planted departure each: found, at its line, with the right code."""

from __future__ import annotations

import inspect

import planted_formats
import planted_values
import pytest
import torch
from planted_kit import CASES, mse
from torch import nn

from castiron.torch.audit import audit

torch.set_num_threads(1)

assert planted_formats.__doc__
assert planted_values.__doc__


def test_there_are_sixty():
    assert len(CASES) >= 60


@pytest.mark.parametrize(("code", "policy", "make"), CASES, ids=[c[2].__name__ for c in CASES])
def test_planted_fault(code, policy, make):
    arguments = make()
    arguments.setdefault("loss", mse)
    report = audit(policy=policy, **arguments)
    lines, first = inspect.getsourcelines(make)
    marked = [first + i for i, line in enumerate(lines) if line.rstrip().endswith("# fault")]
    found = [f for f in report.findings if f.code == code]
    assert found, f"{code} was not found; {[str(f) for f in report.findings]}"
    if marked:
        assert marked[0] in [f.place.line for f in found]
        assert found[0].place.file == inspect.getfile(make)
    for f in report.findings:
        assert f.message
        assert f.remedy
        if f.severity != "info":
            assert f.received or f.expected


def test_no_kernel(monkeypatch):
    from castiron.torch.audit import kernels

    monkeypatch.setattr(kernels, "no_lstm", lambda dtype, device: "could not create a primitive descriptor")
    model = nn.Sequential(nn.LSTM(8, 8))
    report = audit(model, torch.randn(4, 2, 8), "fp16-mixed")
    assert [f.code for f in report.findings if f.severity == "error"] == ["F324"]
    assert report.errors[0].place.module == "0"
    assert report.errors[0].message == (
        "lstm has no kernel for float16 here: could not create a primitive descriptor"
    )
