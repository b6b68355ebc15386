"""Two processes under DDP, one of them with a bad batch: one decision, one incident, and nothing hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("two_processes.py")


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
LINE = "gradients torch.float32 65.0"
"""259 / 4 = 64.75, which bfloat16 has not."""


def run(folder: Path, response: str, *before: str) -> str:
    """What the script said."""
    done = subprocess.run(
        [sys.executable, *before, str(SCRIPT), str(folder), response],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def check(folder: Path, stopped: str | None, steps: int) -> None:
    """Both ranks held what was bad on one of them, and told it once."""
    first, second = (json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    for record in (first, second):
        assert record["steps"] == steps
        assert record["held"] == 1
        assert record["stopped"] == stopped
        assert record["finite"]
    assert first["weights"] == second["weights"]
    assert first["incidents"] == second["incidents"]
    (told,) = second["incidents"]
    incident = json.loads((Path(told) / "incident.json").read_text())
    assert (incident["rank"], incident["code"], incident["step"]) == (1, "N507", 2)
    assert [r["row"] for r in incident["rows"]] == [16]


@pytest.mark.slow
def test_both_ranks_hold_what_is_bad_on_one_of_them(tmp_path: Path) -> None:
    run(tmp_path, "hold", *TORCHRUN)
    check(tmp_path, stopped=None, steps=4)


@pytest.mark.slow
def test_both_ranks_raise_and_gradients_are_averaged_in_the_accumulate_format(tmp_path: Path) -> None:
    said = run(tmp_path, "raise")
    check(tmp_path, stopped="N507", steps=2)
    assert [line for line in said.splitlines() if line.startswith("gradients")] == [LINE]
