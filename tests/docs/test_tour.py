"""docs/tour.md and its notebook: the same cells, each run, and the output is what the notebook shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"

RUN = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import notebook
target = Path("made.ipynb").resolve()
target.write_text(json.dumps(notebook.notebook((notebook.DOCS / "tour.md").read_text(encoding="utf-8"))))
"""


def test_the_notebook_is_what_the_page_does(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(DOCS / "_ext")],
        cwd=tmp_path, capture_output=True, text=True, timeout=240,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "made.ipynb").read_text(encoding="utf-8"))
    kept = json.loads((DOCS / "tour.ipynb").read_text(encoding="utf-8"))
    for cell, known in zip(made["cells"], kept["cells"], strict=True):
        assert cell["source"] == known["source"], "run: python docs/_ext/notebook.py"
    said = ["".join(o["text"]) for c in made["cells"] for o in c.get("outputs", [])]
    shown = ["".join(o["text"]) for c in kept["cells"] for o in c.get("outputs", [])]
    for n, (now, then) in enumerate(zip(said, shown, strict=True)):
        if n not in (2, 4):  # accuracy and shares of FLOPs may differ in a digit between machines
            assert now == then
    assert "completed 40 steps" in said[2]
