"""Shared by the tests of the TensorFlow wing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

keras = pytest.importorskip("keras", reason="TensorFlow is not installed")
tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

from castiron.keras.health import monitor  # noqa: E402
from castiron.keras.modules import describe  # noqa: E402
from castiron.keras.precision import Precision, apply  # noqa: E402
from castiron.policy import Plan, PrecisionPolicy, resolve  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Keras's variables do not know NumPy 2's `copy` yet; saving a model meets it.
    here = str(Path(__file__).parent)
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"))


@pytest.fixture(autouse=True)
def _fixed_seed() -> Iterator[None]:
    """A fixed seed, and Keras's global state as it was."""
    keras.utils.set_random_seed(0)
    before = (keras.config.floatx(), keras.config.dtype_policy().name)
    yield
    assert (keras.config.floatx(), keras.config.dtype_policy().name) == before


@pytest.fixture(scope="module")
def one_graph() -> Iterator[None]:
    """With `health.every=1` every step is measured like the first: a training compiles one graph of its step,
    not one that measures and one that does not."""
    first = monitor._looks(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitor, "_looks", lambda number: first)
        yield


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

    def make(model: Any, preset: str = "float32", **overrides: Any) -> Plan:
        plan, _ = resolve(PrecisionPolicy.preset(preset, **overrides), describe(model))
        return plan.model_copy(update={"device": "cpu"})

    return make


@pytest.fixture
def applied(plan_of: Callable[..., Plan]) -> Callable[..., Precision]:
    """`applied(model, "bf16-mixed", layers=…)`: the plan resolved and applied."""
    return lambda model, preset="float32", **overrides: apply(model, plan_of(model, preset, **overrides))
