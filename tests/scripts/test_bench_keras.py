"""The benchmark of the guard in Keras runs, every contender of it, and its page has a row for each."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

keras = pytest.importorskip("keras", reason="TensorFlow is not installed")

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_keras.py"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.setenv("CASTIRON_CACHE", str(tmp_path))
    spec = importlib.util.spec_from_file_location("bench_keras", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def small() -> tuple[Any, Any, Any]:
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        return model, module.np.ones((6, 4), "float32"), module.np.zeros((6,), "int64")

    monkeypatch.setitem(module.MODELS, "small", small)
    return module


def test_every_contender_trains_and_has_a_row(bench: ModuleType) -> None:
    found = bench.compare("small", 1, 2)
    assert found["step_ms"] > 0
    others = [name for name in bench.CONTENDERS if name != "fit"]
    assert [*found["ratios"], *found["failed"]] == others
    assert set(found["failed"]) == {"enable_check_numerics, jit_compile"}
    text = bench.page("a machine", [found], "python scripts/bench.py keras")
    for name, ratio in found["ratios"].items():
        assert f"| {name} | {ratio:.3f} (" in text
    assert "| enable_check_numerics, jit_compile | fails: No OpKernel for XLA |" in text
