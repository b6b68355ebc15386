"""Shared by the tests of the audit."""

from __future__ import annotations

import importlib
import sys
import types
import unittest
import unittest.mock
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the planted faults lie beside their tests


@pytest.fixture
def list_of_torch(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], list[Any]]:
    """`list_of_torch("common_modules", "module_db")`: what torch's own tests go through. They want a package
    for it that castiron does not have."""

    def read(module: str, name: str) -> list[Any]:
        if "expecttest" not in sys.modules:
            stand_in = types.ModuleType("expecttest")
            stand_in.TestCase = unittest.TestCase  # type: ignore[attr-defined]
            sys.modules["expecttest"] = stand_in
        try:
            # imported, it would forbid everybody in this process to set a switch of cuDNN
            with warnings.catch_warnings(), unittest.mock.patch("torch.backends.disable_global_flags"):
                warnings.simplefilter("ignore")
                found = list(getattr(importlib.import_module(f"torch.testing._internal.{module}"), name))
        except (ImportError, AttributeError) as e:
            pytest.skip(f"this torch has no such list: {e}")
        # for each example it looks through the whole stack for a unittest.TestCase, which no test here is
        for user in ("common_utils", "opinfo.core"):
            if torchs := sys.modules.get(f"torch.testing._internal.{user}"):
                monkeypatch.setattr(torchs, "extract_test_fn", lambda: None, raising=False)
        return found

    return read
