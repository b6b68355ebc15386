"""Two processes under DDP, one of them with a bad batch: one decision, one incident, and nothing hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("two_processes.py")


def torchrun(processes: int, script: Path, *arguments: str) -> str:
    """What the script says, run by so many processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    done = subprocess.run(
        [*command, str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("response", "stopped", "steps"), [("hold", None, 4), ("raise", "N507", 2)])
def test_both_ranks_hold_what_is_bad_on_one_of_them(
    response: str, stopped: str | None, steps: int, tmp_path: Path
) -> None:
    torchrun(2, SCRIPT, str(tmp_path), response)
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    for record in (first, second):
        assert record["steps"] == steps
        assert record["held"] == 1
        assert record["stopped"] == stopped
        assert record["finite"]
    assert first["weights"] == second["weights"]
    assert first["incidents"] == second["incidents"]
    (folder,) = second["incidents"]
    incident = json.loads((Path(folder) / "incident.json").read_text())
    assert (incident["rank"], incident["code"], incident["step"]) == (1, "N507", 2)
    assert [r["row"] for r in incident["rows"]] == [16]


@pytest.mark.slow
def test_gradients_are_averaged_in_the_accumulate_format() -> None:
    said = torchrun(4, SCRIPT.with_name("reducing.py"))
    (line,) = [line for line in said.splitlines() if line.startswith("gradients")]
    assert line == "gradients torch.float32 65.0"  # 259 / 4 = 64.75, which bfloat16 has not
