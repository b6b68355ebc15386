"""The bare loop of docs/guard.md, as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guard.md"


def test_it_holds_the_bad_step_and_trains_on(tmp_path: Path) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", "import torch\ntorch.set_num_threads(1)\n" + script],
        cwd=tmp_path, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "N507 Field 'x' of the batch is not finite in row 5 of 64" in done.stdout
    assert "because of row 1285" in done.stdout
    assert "39 steps, 1 held, loss 0." in done.stdout
    assert (tmp_path / "incidents" / "step-20" / "incident.json").is_file()
