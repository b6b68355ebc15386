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


FORKS = """
import os, sys
import keras
import castiron.keras.session

folder, *scripts = sys.argv[1:]
for number, script in enumerate(scripts):
    home = os.path.join(folder, str(number))
    os.mkdir(home)
    child = os.fork()
    if not child:
        os.chdir(home)
        said = os.open("said.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(said, 1)
        os.dup2(said, 2)
        exec(compile(script, "<string>", "exec"), {"__name__": "__main__"})
        sys.exit()
    code = os.waitstatus_to_exitcode(os.wait()[1])
    with open(os.path.join(home, "code.txt"), "w") as file:
        file.write(str(code))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each program has run in a folder of its own, in a copy of a process that has imported Keras."""
    assert len(SCRIPTS) == len(SAYS)
    home = tmp_path_factory.mktemp("programs")
    subprocess.run(
        [sys.executable, "-c", FORKS, str(home), *SCRIPTS],
        check=True, timeout=240, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    return home


@pytest.mark.parametrize("number", range(len(SAYS)))
def test_a_program_does_what_the_page_says(number: int, folder: Path) -> None:
    said = (folder / str(number) / "said.txt").read_text(encoding="utf-8")
    assert (folder / str(number) / "code.txt").read_text() == "0", said
    for words in SAYS[number]:
        assert words in said
    if number == 0:
        assert (folder / "0" / "incidents" / "step-10" / "incident.json").is_file()
