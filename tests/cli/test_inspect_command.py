"""`castiron inspect`, `export`, `--weights` and `--on-mismatch`, on a run of the recipe."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

TINY = (
    "data.batch_size=32", "model.embedding=8", "model.hidden=8", "model.text.max_vocabulary=200",
    "trainer.limit_train=2", "trainer.limit_validation=1", "trainer.limit_test=1", "trainer.max_epochs=1",
    "trainer.threads=1", "audit.level=off",
)  # fmt: skip


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch pwned",)


@pytest.fixture
def trained(castiron: Any) -> Any:
    assert castiron("train", "lstm-sentiment", *TINY, "--name", "first", "--quiet").code == 0
    return castiron


def test_a_checkpoint_is_looked_into_exported_and_started_from(trained: Any, tmp_path: Path) -> None:
    checkpoint = "runs/lstm-sentiment/first/checkpoints/last.ckpt"
    said = trained("inspect", checkpoint)
    assert said.code == 0
    assert "kind         Lightning checkpoint of castiron" in said.out
    assert "seal         intact" in said.out
    assert "policy       p=float32,c=float32,o=float32" in said.out
    record = json.loads(trained("inspect", checkpoint, "--json").out)
    assert record["manifest"]["recipe"] == "lstm-sentiment"
    assert record["tensors"]["state_dict.model.head.weight"] == {"dtype": "float32", "shape": [2, 16]}

    assert trained("export", "lstm-sentiment/first", "w.safetensors").code == 0
    assert "safetensors of castiron" in trained("inspect", "w.safetensors").out
    assert trained("export", "lstm-sentiment/first", "w.safetensors").code == 2
    own = json.loads(trained("evaluate", "lstm-sentiment/first", "--json").out)
    again = json.loads(
        trained("evaluate", "lstm-sentiment/first", "--weights", "w.safetensors", "--json").out
    )
    assert again == own

    narrow = trained(
        "train",
        "lstm-sentiment",
        *TINY,
        "precision=bf16-true",
        "--weights",
        "w.safetensors",
        "--name",
        "b",
        "-q",
    )
    assert narrow.code == 2
    assert "error C606  11 parameters of the checkpoint are in another format." in narrow.err
    assert "parameter  head.weight" in narrow.err
    assert "→ Load them under the policy they were made in, or allow casts: --on-mismatch cast." in narrow.err
    assert not (tmp_path / "runs" / "lstm-sentiment" / "b").exists()
    cast = trained(
        "train", "lstm-sentiment", *TINY, "precision=bf16-true", "--weights", "w.safetensors",
        "--on-mismatch", "cast", "--name", "b", "-q",
    )  # fmt: skip
    assert cast.code == 0, cast.err
    assert "warning C619  11 tensors of the checkpoint were cast." in cast.err
    assert "rounded:" in cast.err


def test_a_file_with_code_is_named_and_exits_with_one(castiron: Any, tmp_path: Path) -> None:
    castiron("--version")  # from here on the command's folder is the current one
    torch.save({"state_dict": {"w": torch.zeros(3)}, "hook": Evil()}, tmp_path / "evil.pt")
    said = castiron("inspect", "evil.pt")
    assert said.code == 1
    assert "warning C617  Loading this file without care would run code that it names." in said.err
    assert "Received posix.system" in said.err
    assert "state_dict.w" in said.out
    refused = castiron("train", "lstm-sentiment", *TINY, "--weights", "evil.pt", "-q")
    assert refused.code == 2
    assert "error C617" in refused.err
    assert not (tmp_path / "pwned").exists()


def test_what_cannot_be_inspected(castiron: Any, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("hello, this is a text file")
    assert "error C616  The file is no checkpoint." in castiron("inspect", str(tmp_path / "x.txt")).err
    missing = castiron("inspect", "none.ckpt")
    assert (missing.code, "C601" in missing.err) == (2, True)
    assert castiron("train", "lstm-sentiment", "--on-mismatch", "maybe").code == 2
    assert castiron("train", "--resume", "x", "--weights", "y").code == 2
