"""The command line, called within the process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest


@dataclass
class Said:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture
def castiron(capsys, monkeypatch, tmp_path) -> Callable[..., Said]:
    """`castiron("train", "x")`: runs the command in a folder of its own, as without a terminal."""
    from castiron.cli.main import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORCE_COLOR", raising=False)

    def call(*arguments: str) -> Said:
        capsys.readouterr()
        code = run(list(arguments))
        out, err = capsys.readouterr()
        assert "\x1b" not in out + err, "escape codes without a terminal"
        return Said(code, out, err)

    return call
