"""A project made by `castiron recipes copy` trains in a folder of its own, and its own test passes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from castiron.training.registry import registered


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


@pytest.mark.parametrize("name", registered())
def test_every_recipe_can_be_copied_and_is_ready_to_train(castiron, tmp_path, name):
    """Config, data, plan and steps of the copy; `.ci/run` trains all of them, from the wheel."""
    said = castiron("recipes", "copy", name, f"my-{name}")
    assert said.code == 0, said.err
    project = tmp_path / f"my-{name}"
    (config,) = project.glob("*/default.yaml")
    configs = [str(c) for c in sorted(config.parent.glob("*.yaml"))]
    assert castiron("validate", *configs).code == 0
    dry = castiron("train", str(config), "trainer.threads=1", "--dry-run")
    assert dry.code == 0, dry.err
    assert f"runs/my-{name}/" in dry.out
    package = f"castiron_recipes.{name.replace('-', '_')}"
    for file in config.parent.glob("*.py"):
        assert package not in file.read_text(encoding="utf-8"), "the copy stands on itself"
    for file in config.parent.glob("*.yaml"):
        assert f"recipe: {name}" not in file.read_text(encoding="utf-8")
