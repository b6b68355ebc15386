"""What `predict` is asked: nothing, very much, and what is no text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from castiron.cli.predict import read_inputs
from castiron.data import Field, Schema
from castiron.diagnostics import CastironError
from castiron.training.questions import dataset_of

TINY = (
    "data.batch_size=32", "model.embedding=8", "model.hidden=8", "model.text.max_vocabulary=200",
    "trainer.limit_train=2", "trainer.limit_validation=1", "trainer.limit_test=1", "trainer.max_epochs=1",
    "trainer.threads=1", "audit.level=off",
)  # fmt: skip
TEXT = Schema.of(Field(name="text", role="text"), Field(name="label", role="target"))


def test_predict_takes_odd_texts_and_refuses_what_is_none(castiron: Any) -> None:
    assert castiron("train", "lstm-sentiment", *TINY, "--name", "first", "--quiet").code == 0
    run = "lstm-sentiment/first"
    said = castiron("predict", run, "", " ", "\0", "a\u2028b", "good " * 20_000)
    assert said.code == 0, said.err
    assert said.out.count("probability") == 5
    said = castiron("predict", run, "caf\udce9")  # what Python makes of the Latin-1 bytes of café
    assert said.code == 2
    told = "error X823  Expected text in UTF-8. Received byte 0xe9 at inputs.jsonl:1, field 'text'"
    assert told in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'"\\ud83c"\n', "Received half a surrogate pair (\\ud83c) at inputs.jsonl:1, field 'text'"),
        (b'"good"\n\xff\n', "X823 Expected text in UTF-8. Received byte 0xff at x.jsonl:2"),
        (b"[" * 100_000 + b"\n", "X823 The line is not JSON"),
        (b"3\n", "X823 Expected a text or a mapping. Received int at x.jsonl:1"),
        (b'{"film": "good"}\n', "D120 Expected a column 'text'"),
        (
            b'{"text": null}\n{"text": {"text": 1}}\n',
            "D116 Expected text for field 'text'. Received a JSON object",
        ),
    ],
)
def test_lines_that_are_no_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.jsonl").write_bytes(content)
    with pytest.raises(CastironError) as caught:
        dataset_of(TEXT, read_inputs(Path("x.jsonl")))
    assert told in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_pipe_or_a_folder_is_no_file_of_inputs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        CastironError, match=r"Received a pipe at .*pipe\. Give --file - to read from a pipe\."
    ):
        read_inputs(tmp_path / "pipe")
    with pytest.raises(CastironError, match=r"X823 Expected a file\. Received a folder at "):
        read_inputs(tmp_path)
    (tmp_path / "empty.txt").write_bytes(b"")
    assert read_inputs(tmp_path / "empty.txt") == []
