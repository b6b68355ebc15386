"""What `predict` is asked: nothing, very much, and what is no text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

TINY = (
    "data.batch_size=32", "model.embedding=8", "model.hidden=8", "model.text.max_vocabulary=200",
    "trainer.limit_train=2", "trainer.limit_validation=1", "trainer.limit_test=1", "trainer.max_epochs=1",
    "trainer.threads=1", "audit.level=off",
)  # fmt: skip


def test_predict_takes_odd_texts_and_refuses_what_is_none(castiron: Any, tmp_path: Path) -> None:
    assert castiron("train", "lstm-sentiment", *TINY, "--name", "first", "--quiet").code == 0
    run = "lstm-sentiment/first"

    said = castiron("predict", run, "", " ", "\0", "a\u2028b", "good " * 20_000)
    assert said.code == 0, said.err
    assert len(said.out.splitlines()) >= 5
    assert said.out.count("probability") == 5

    said = castiron("predict", run, "caf\udce9")  # what Python makes of the Latin-1 bytes of café
    assert said.code == 2
    assert (
        "error X823  Expected text in UTF-8. Received byte 0xe9 at inputs.jsonl:1, field 'text'" in said.err
    )
    assert "Traceback" not in said.err

    file = tmp_path / "x.jsonl"
    for content, received in (
        (b'"\\ud83c"\n', "Received half a surrogate pair (\\ud83c) at inputs.jsonl:1, field 'text'"),
        (b'{"text": "good"}\n\xff\n', "Received byte 0xff at x.jsonl:2"),
        (b"[" * 100_000 + b"\n", "The line is not JSON"),
        (b"3\n", "Expected a text or a mapping. Received int at x.jsonl:1"),
        (b'{"film": "good"}\n', "D120"),
    ):
        file.write_bytes(content)
        said = castiron("predict", run, "--file", "x.jsonl")
        assert said.code == 2, content[:40]
        assert received in said.err
        assert "Traceback" not in said.err
    file.write_bytes(b"")
    assert castiron("predict", run, "--file", "x.jsonl").out == ""

    os.mkfifo(tmp_path / "pipe")
    said = castiron("predict", run, "--file", "pipe")
    assert said.code == 2
    assert (
        "error X823  Expected a file. Received a pipe at pipe. Give --file - to read from a pipe." in said.err
    )
    said = castiron("predict", run, "--file", "runs")
    assert said.code == 2
    assert "Expected a file. Received a folder at runs." in said.err
