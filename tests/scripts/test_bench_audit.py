"""The audit's benchmark runs, and its page has a row for each model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_audit.py"


def test_it_runs_and_fits_its_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("bench_audit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    page = tmp_path / "docs" / "benchmarks" / "audit.md"
    page.parent.mkdir(parents=True)
    monkeypatch.setattr(bench, "PAGE", page)
    threads = torch.get_num_threads()
    try:
        bench.main(["--layers", "1", "--rounds", "1", "--write"])
    finally:
        torch.set_num_threads(threads)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r.get("model") for r in rows[:4]] == ["lstm-sentiment"] * 2 + ["decoder on meta"] * 2
    assert all(r["found"] == [] and r["peak_MB"] > 0 for r in rows[:4])  # the peak is of all tests so far
    assert rows[4]["ratio"] > 0
    assert page.read_text().count("| decoder on meta |") == 2
