"""A short soak: the books balance."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "soak.py"


@pytest.mark.slow
def test_every_fault_is_accounted_for(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--steps", "1000", "--kills", "1", "--full", "1", "--json"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    account = json.loads(done.stdout)
    assert account["batches"] == 1000
    assert account["held"] == account["with NaN"] > 0
    assert account["overflows counted by the scaler"] == account["with overflow"] > 0
    assert account["parameters finite"]
