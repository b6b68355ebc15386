"""A few kills of the script that does a hundred."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "kill_test.py"


@pytest.mark.slow
def test_killed_runs_end_like_one_that_was_not(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(SCRIPT),
        "--kills",
        "3",
        "--seed",
        "5",
        "--policies",
        "bf16-mixed",
        "--json",
    ]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    account = json.loads(done.stdout)
    assert account["different"] == 0
    assert sum(account["killed while"].values()) == 3
