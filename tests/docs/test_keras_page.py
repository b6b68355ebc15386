"""The programs of docs/keras.md, as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "keras.md"
SCRIPTS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
SAYS = (
    ("76 steps, 4 held", "N507 Field '0' of the batch is not finite in row 5 of 32"),
    ("N521 100 % of the updates of a layer are lost: its bfloat16 weights do not move",),
    ("3 steps, 1 held",),
    ("19 steps, 1 held", "N507 Field 'x' of the batch is not finite in row 5 of 32"),
)


@pytest.mark.parametrize("number", range(len(SAYS)))
def test_a_program_does_what_the_page_says(number: int, tmp_path: Path) -> None:
    assert len(SCRIPTS) == len(SAYS)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPTS[number]],
        cwd=tmp_path, capture_output=True, text=True, timeout=240,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in SAYS[number]:
        assert words in done.stdout
    if number == 0:
        assert (tmp_path / "incidents" / "step-10" / "incident.json").is_file()
