"""The loop of docs/health.md, as it stands there; and its pictures are there, and small."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import torch

from castiron.health.recorder import read_advice
from castiron.health.table import read

PAGE = Path(__file__).resolve().parents[2] / "docs" / "health.md"


def test_the_loop(capsys: Any) -> None:
    torch.set_num_threads(1)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "health.md", "exec"), names)
    assert [f.code for f in names["said"]] == ["N521"]
    assert names["said"][0].place.module == "2"
    assert "N521" in capsys.readouterr().out
    folder = Path(names["folder"])
    assert [s.step for s in read(folder)] == list(range(1, 61, 5))
    assert {f.code for _, f in read_advice(folder)} == {"N521"}
    with open(folder / "health.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    lost = [float(row["health/lost_updates"]) for row in rows if row["health/lost_updates"]]
    assert len(lost) < len(rows), "most measurements look at the largest magnitudes alone"
    assert lost[-1] > 0.5


def test_the_pictures() -> None:
    shown = re.findall(r"!\[.*?\]\((.*?)\)", PAGE.read_text(encoding="utf-8"))
    assert len(shown) == 4
    for name in shown:
        assert 5_000 < (PAGE.parent / name).stat().st_size < 150_000
