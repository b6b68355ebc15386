"""The examples of the rules: the bad one is found under its code, the mended one is not."""

from __future__ import annotations

import re
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from castiron.diagnostics import RULES
from castiron.diagnostics.rules import flow_keras
from castiron.torch.audit import audit

torch.set_num_threads(1)

KERAS = {r.code for r in flow_keras.RULES}
"""Rules of the TensorFlow wing; their examples run in tests/keras/audit."""
CODES = [c for c in sorted(RULES) if c.startswith("F3") and RULES[c].bad and c not in KERAS]
ELSEWHERE = {
    "F322": "a switch of CUDA, tests/gpu",
    "F324": "test_planted.py: it depends on the CPU",
    "F328": "calls of audit itself",
}


def run(code: str, text: str, policy: str, file: str):
    """Audit what an example says; every part that it leaves out is an ordinary one."""
    names = {"torch": torch, "F": F, "np": np, "nn": nn}
    names["model"] = model = nn.Module()
    model.head = nn.Linear(8, 4)
    model.forward = types.MethodType(lambda self, x: self.head(x), model)
    arguments = {"loss": lambda outputs, batch: outputs.float().mean()}
    if text.startswith("loss ="):
        if code == "F310":
            names["targets"] = np.zeros((16, 4))
        else:
            names["targets"] = torch.zeros(16, 4)

        def loss(outputs, batch):
            scope = {**names, "outputs": outputs}
            exec(compile(text, file, "exec"), scope)
            return scope["loss"]

        arguments["loss"] = loss
    else:
        exec(compile(text, file, "exec"), names)  # a file's name: code of nowhere is nobody's
    if "forward" in names:
        model.forward = types.MethodType(names["forward"], model)
    if "shapes" in names:
        arguments["shapes"] = names["shapes"]
    if "optimizer" in names:
        arguments["optimizer"] = names["optimizer"]
    return audit(model, torch.randn(16, 8), policy, **arguments)


@pytest.mark.parametrize("code", [c for c in CODES if c not in ELSEWHERE])
def test_examples(code, tmp_path):
    rule = RULES[code]
    said = re.search(r"# (float32|bf16-mixed|bf16-true|fp16-mixed)", rule.bad)
    policy = said.group(1) if said else "float32"
    mended = re.search(r"# (float32|bf16-mixed|bf16-true|fp16-mixed)", rule.good)
    try:
        bad = run(code, rule.bad, policy, str(tmp_path / "bad.py"))
        assert code in [f.code for f in bad.findings], [str(f) for f in bad.findings]
    finally:
        torch.set_flush_denormal(False)
    good = run(
        code,
        rule.good,
        mended.group(1) if mended else policy if code != "F313" else "float32",
        str(tmp_path / "good.py"),
    )
    assert [str(f) for f in good.findings if f.code == code or f.severity == "error"] == []


def test_every_rule_of_the_family_has_an_example():
    assert set(ELSEWHERE) <= set(CODES)
    assert [c for c in RULES if c.startswith("F3") and not RULES[c].bad] == ["F329"]
