"""What is loaded when: no room below the wings loads a framework; `import castiron` loads next to nothing."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
import textwrap

import pytest

import castiron

FRAMEWORKS = ("torch", "lightning", "pytorch_lightning", "torchmetrics", "tensorflow", "keras", "jax")


def loaded_after(script: str, *arguments: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded once the script has run."""
    report = "\nimport sys\nprint('\\n'.join(sorted({m.partition('.')[0] for m in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script) + report, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_import_castiron_loads_nothing_to_speak_of() -> None:
    loaded = loaded_after("import castiron; castiron.__version__; dir(castiron)")
    assert loaded.isdisjoint({*FRAMEWORKS, "numpy", "pydantic", "pyarrow", "rich", "typer", "tensorboard"})


def test_a_policy_needs_pydantic_alone() -> None:
    loaded = loaded_after("import castiron; castiron.PrecisionPolicy.preset('bf16-mixed')")
    assert loaded.isdisjoint({*FRAMEWORKS, "numpy", "pyarrow", "rich", "tensorboard"})
    assert "pydantic" in loaded


@pytest.mark.parametrize("room", ["formats", "diagnostics", "policy", "data", "health", "training"])
def test_rooms_below_the_wings_load_no_framework(room: str) -> None:
    """Every module of the room, also those that others import on first use only."""
    script = f"""
        import importlib, pkgutil
        room = importlib.import_module("castiron.{room}")
        for module in pkgutil.walk_packages(getattr(room, "__path__", []), "castiron.{room}."):
            importlib.import_module(module.name)
    """
    assert loaded_after(script).isdisjoint(FRAMEWORKS)


@pytest.mark.parametrize(
    "arguments", ["--help", "train --help", "--version", "policy list", "configs list", "rules"]
)
def test_the_front_door_opens_without_a_framework(arguments: str) -> None:
    script = f"""
        from castiron.cli.main import run
        try:
            run({arguments.split()!r})
        except SystemExit:
            pass
    """
    assert loaded_after(script).isdisjoint(FRAMEWORKS)


@pytest.mark.parametrize("name", castiron.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(castiron, name)
    assert name in dir(castiron)
    assert name == "__version__" or value.__name__ == name
    assert getattr(castiron, name) is value


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'castiron' has no attribute 'Polcy'"):
        castiron.Polcy  # noqa: B018


def test_every_module_can_be_imported_first() -> None:
    """No module leans on another having been imported before it."""
    names = [m.name for m in pkgutil.walk_packages(castiron.__path__, "castiron.")]
    plain = [
        n
        for n in names
        if n.split(".")[1] in ("formats", "diagnostics", "policy", "health", "data", "training")
    ]
    script = """
        import importlib, sys
        for name in sys.argv[1:]:
            for loaded in [m for m in sys.modules if m.partition(".")[0] == "castiron"]:
                del sys.modules[loaded]
            importlib.import_module(name)
    """
    loaded_after(script, *plain)
