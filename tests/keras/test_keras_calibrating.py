"""`castiron health` and `castiron suggest` with backend: tensorflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from castiron.cli.main import app
from castiron.training.suggesting import suggest

SMALL = (
    "backend=tensorflow", "data.batch_size=32", "model.bidirectional=false", "model.embedding=8",
    "model.hidden=8", "model.text.max_vocabulary=200", "trainer.limit_train=8", "trainer.device=cpu",
)  # fmt: skip


def test_health_of_a_config_and_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def told(target: str, *more: str) -> dict[str, Any]:
        said = CliRunner().invoke(app, ["health", target, *more, "--batches", "2", "--json"])
        assert said.exit_code == 0, said.output
        found: dict[str, Any] = json.loads(said.stdout)
        return found

    before = told("lstm-sentiment", *SMALL)
    assert before["findings"] == []
    kinds = {row["kind"] for row in before["steps"]}
    assert kinds == {"activations", "activation gradients", "parameters", "gradients"}
    assert {row["step"] for row in before["steps"]} == {1, 2}
    assert all(row["bfloat16/overflow"] == 0 for row in before["steps"] if row["kind"] == "activations")
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
    few = ["trainer.max_steps=2", "trainer.limit_validation=1", "trainer.limit_test=1"]
    trained = CliRunner().invoke(
        app, ["train", "lstm-sentiment", *SMALL, *few, "optimizer.lr=0.5", "--name", "a", "--quiet"]
    )
    assert trained.exit_code == 0, trained.output
    after = told("lstm-sentiment/a")
    assert largest(after, "head") > 2 * largest(before, "head")  # the weights of the run


def largest(told: dict[str, Any], layer: str) -> float:
    rows = [r for r in told["steps"] if (r["kind"], r["layer"]) == ("parameters", layer)]
    return max(float(row["largest"]) for row in rows)


def test_what_is_suggested_is_not_slower_and_as_good() -> None:
    found = suggest("lstm-sentiment", list(SMALL), batches=2, steps=8, seeds=2)
    assert {c.preset for c in found.candidates} == {"float8-mixed", "bf16-mixed", "fp16-mixed", "tf32"}
    assert found.findings == ()
    assert found.float32_ms > 0
    if found.proof is None:
        assert found.precision() == "float32"
    else:
        assert found.proof.holds
        assert found.gain >= 1
