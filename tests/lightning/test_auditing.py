"""A recipe is audited before its first step, and looked at while it trains."""

from __future__ import annotations

import json

import pytest

from castiron.diagnostics import AuditError
from castiron.training import load_config
from castiron.training.auditing import audit_config, verify
from castiron.training.launch import train
from castiron.training.run_directory import RunDirectory

RECIPE = """
import torch
from castiron_recipes import LSTMSentiment


class Model(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.steps = 0

    def forward(self, ids, lengths):
        outputs = self.inner(ids, lengths)
        self.steps += 1
        if FAULT or (LATE and self.steps > 4):
            outputs = outputs * torch.ones(2, dtype=torch.float64)
        return outputs


class Faulty(LSTMSentiment):
    name = "faulty"

    def model(self):
        return Model(super().model())
"""

TINY = (
    "data.batch_size=32", "model.embedding=8", "model.hidden=8", "model.text.max_vocabulary=200",
    "trainer.limit_train=6", "trainer.limit_validation=2", "trainer.limit_test=2", "trainer.max_epochs=4",
    "trainer.threads=1", "trainer.device=cpu",
)  # fmt: skip


def load(folder, *overrides, fault=False, late=False):
    file = folder / "my_recipe.py"
    file.write_text(RECIPE.replace("FAULT", str(fault)).replace("LATE", str(late)))
    return load_config(f"{file}:Faulty", [*TINY, *overrides])


def test_strict_stops_before_the_first_step(tmp_path):
    with pytest.raises(AuditError, match="F301 mul meets float32 with float64") as caught:
        train(load(tmp_path, fault=True), runs=tmp_path, name="run")
    assert caught.value.findings[0].place.file == str(tmp_path / "my_recipe.py")
    assert caught.value.findings[0].place.line == 16
    assert not (tmp_path / "faulty" / "run" / "metrics.jsonl").exists()


class Heard:
    verbosity = "quiet"

    def __init__(self):
        self.found = []

    def __getattr__(self, name):
        return lambda *arguments: None

    def findings(self, findings):
        self.found.extend(findings)


def test_warn_goes_on_and_the_certificate_says_so(tmp_path):
    heard = Heard()
    run, outcome = train(
        load(tmp_path, "audit.level=warn", fault=True), runs=tmp_path, name="run", reporter=heard
    )
    assert outcome.status == "completed"
    assert [f.code for f in heard.found] == ["F301"]
    assert not verify(run.path).ok


def test_off_writes_none(tmp_path):
    run, _ = train(load(tmp_path, "audit.level=off", fault=True), runs=tmp_path, name="run")
    assert not (run.path / "audit.json").exists()


def test_a_departure_that_comes_late_is_reported_once(tmp_path):
    heard = Heard()
    run, outcome = train(
        load(tmp_path, "audit.every=4", late=True), runs=tmp_path, name="run", reporter=heard
    )
    assert outcome.status == "completed"
    assert [(f.code, f.place.line) for f in heard.found] == [("F301", 16)]
    report = json.loads((run.path / "audit.json").read_text())
    assert report["steps"] == [10, 14, 18, 22]
    assert not verify(run.path).ok


def test_a_config_is_audited_without_training(tmp_path):
    loaded = load(tmp_path, "precision=bf16-mixed")
    folder = tmp_path / "work"
    folder.mkdir()
    report = audit_config(loaded, RunDirectory(folder))
    assert report.ok
    assert report.share()["bfloat16"] > 0.99
