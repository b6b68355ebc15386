"""Reads event files back with tensorboard's own reader, which would otherwise import TensorFlow."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

KINDS = ("scalars", "histograms", "images", "tensors")


@pytest.fixture
def read() -> Callable[[Path], Any]:
    """A folder's events, as a loaded `EventAccumulator`."""
    sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def reader(folder: Path) -> Any:
        return EventAccumulator(str(folder), size_guidance=dict.fromkeys(KINDS, 0)).Reload()

    return reader
