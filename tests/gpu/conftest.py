"""Tests that need a CUDA device; skipped, and said to be, where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """A fixed seed; the check for synchronisation is off again afterwards."""
    torch.manual_seed(0)
    yield
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("default")
