"""A project made by `castiron recipes copy` trains in a folder of its own, and its own test passes."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_copied_project_passes_its_own_test(castiron, tmp_path):
    assert castiron("recipes", "copy", "lstm-sentiment", "my-sentiment").code == 0
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path / "my-sentiment",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
