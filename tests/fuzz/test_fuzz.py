"""Readers take what they are given, or refuse it: a few changes of valid files, and what was once found.

`scripts/fuzz.py` does the same many thousand times.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CASES = Path(__file__).parent / "cases"


def _targets() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "scripts" / "fuzz_targets.py"
    spec = importlib.util.spec_from_file_location("fuzz_targets", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_targets"] = module
    spec.loader.exec_module(module)
    return module


fuzz = _targets()
SEEDS: dict[str, list[bytes]] = {}


def read(name: str, data: bytes) -> str:
    """taken or refused; anything else is raised."""
    target = fuzz.TARGETS[name]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            target.read(data, Path(folder))
        except Exception as e:
            if not fuzz.is_refusal(e, target):
                raise
            return "refused"
    return "taken"


def seeds(name: str) -> list[bytes]:
    if name not in SEEDS:
        SEEDS[name] = fuzz.TARGETS[name].seeds()
    return SEEDS[name]


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_valid_examples_are_taken(name: str) -> None:
    assert read(name, seeds(name)[0]) == "taken"


EDITS = st.lists(
    st.tuples(
        st.integers(0, 6), st.integers(0, 1 << 20), st.sampled_from(fuzz.WORDS) | st.binary(max_size=16)
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_changed_examples_are_taken_or_refused(name: str) -> None:
    @settings(
        max_examples=25, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data(), EDITS)
    def run(data: Any, edits: list[Any]) -> None:
        read(name, fuzz.changed(data.draw(st.sampled_from(seeds(name))), edits))

    run()


@pytest.mark.parametrize("name", fuzz.TARGETS)
@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 64, b"[" * 50_000, b'{"a":' * 20_000, b"\n" * 1000])
def test_rubbish_is_taken_or_refused(name: str, data: bytes) -> None:
    read(name, data)


@pytest.mark.parametrize("case", sorted(CASES.iterdir()), ids=lambda p: p.name)
def test_what_was_once_found(case: Path) -> None:
    name = next(n for n in sorted(fuzz.TARGETS, key=len, reverse=True) if case.name.startswith(f"{n}-"))
    read(name, case.read_bytes())
