"""Shared by the tests of the PyTorch wing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from castiron.policy import Plan, PrecisionPolicy, resolve
from castiron.torch.modules import describe
from castiron.torch.precision import Precision, apply

NO_GPU = "no CUDA device on this machine"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=NO_GPU))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread and a fixed seed: the same numbers on every machine, and no waiting for busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """castiron's cache directory of all these tests: a device is probed once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CASTIRON_CACHE", str(shared_cache))
    return shared_cache


@pytest.fixture
def plan_of() -> Callable[..., Plan]:
    """`plan_of(model, "bf16-mixed", layers=…)`: the plan on a CPU, whatever this one can do natively."""

    def make(model: nn.Module, preset: str = "float32", **overrides: Any) -> Plan:
        plan, _ = resolve(PrecisionPolicy.preset(preset, **overrides), describe(model))
        return plan.model_copy(update={"device": "cpu"})

    return make


@pytest.fixture
def applied(plan_of: Callable[..., Plan]) -> Callable[..., Precision]:
    """`applied(model, "bf16-mixed", layers=…)`: the plan resolved and applied."""
    return lambda model, preset="float32", **overrides: apply(model, plan_of(model, preset, **overrides))
