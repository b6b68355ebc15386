"""scripts/bench_data.py on a small table: who is compared with whom, and that it says so."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_data.py"


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_data", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bench_data = _script()


@pytest.mark.parametrize("kind", bench_data.KINDS)
def test_all_read_the_same_rows_and_one_of_them_the_digest(tmp_path: Path, kind: str) -> None:
    runs = bench_data.contenders(kind, bench_data.make_files(tmp_path, 500))
    ours, bare, digested = (runs[name]() for name in ("castiron", "pyarrow", "digest"))
    dropped = ours.report.dropped
    assert len(ours) == len(digested) == bare.num_rows - dropped == 500 - dropped
    assert all(ours.array(name).dtype == "float32" for name in ours.schema.names)
    assert ours.report.files[0].blake3 == ""
    assert len(digested.report.files[0].blake3) == 64


def test_it_says_the_ratios(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--rows", "500", "--rounds", "1", "--folder", str(tmp_path), "--json"]
    assert bench_data.main([*arguments, "--kinds"]) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": 500, "columns": 10, "results": {}}
    runs = bench_data.contenders("csv", bench_data.make_files(tmp_path, 500))
    told = bench_data.compare(runs, 3)
    assert 0 < told["ratio_low"] <= told["ratio"] <= told["ratio_high"]
    assert told["digest_ratio"] > 0
