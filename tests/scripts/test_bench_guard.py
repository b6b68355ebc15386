"""The guard's benchmark runs, every contender of it, and its page has a row for each."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_guard.py"


class Small(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self(batch["x"]).square().mean()

    @staticmethod
    def batch() -> dict[str, Tensor]:
        return {"x": torch.randn(6, 4, requires_grad=True)}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    monkeypatch.setenv("CASTIRON_CACHE", str(tmp_path))
    spec = importlib.util.spec_from_file_location("bench_guard", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(module.MODELS, "small", Small)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield module
    torch.set_num_threads(threads)


def test_every_contender_trains_and_has_a_row(bench: ModuleType) -> None:
    found = bench.compare("small", 1, 2, 1, torch.device("cpu"), list(bench.CONTENDERS))
    assert found["step_ms"] > 0
    others = [name for name in bench.CONTENDERS if name != "bare loop"]
    assert list(found["ratios"]) == others
    grown = [{"tensors": 10, "elements": 1000, "guard_us": 1.0, "optimizer_us": 2.0}]
    text = bench.page("a machine", [found], grown, "python scripts/bench.py guard")
    for name in others:
        assert f"| {name} | {found['ratios'][name]:.3f} (" in text
    assert "| 10 | 1,000 | 1 | 2 |" in text
