"""What is loaded when: no room below the wings loads a framework; `import castiron` loads next to nothing."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import castiron

FRAMEWORKS = ("torch", "lightning", "pytorch_lightning", "torchmetrics", "tensorflow", "keras", "jax")


ROOMS = ("formats", "diagnostics", "policy", "data", "health", "training")


def run_script(script: str, *arguments: str) -> str:
    """What a script says, in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_after(script: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded once the script has run."""
    report = "\nimport sys\nprint('\\n'.join(sorted({m.partition('.')[0] for m in sys.modules})))"
    return set(run_script(textwrap.dedent(script) + report).split())


def test_import_castiron_loads_nothing_to_speak_of() -> None:
    loaded = loaded_after("import castiron; castiron.__version__; dir(castiron)")
    assert loaded.isdisjoint({*FRAMEWORKS, "numpy", "pydantic", "pyarrow", "rich", "typer", "tensorboard"})


def test_a_policy_needs_pydantic_alone() -> None:
    loaded = loaded_after("import castiron; castiron.PrecisionPolicy.preset('bf16-mixed')")
    assert loaded.isdisjoint({*FRAMEWORKS, "numpy", "pyarrow", "rich", "tensorboard"})
    assert "pydantic" in loaded


@pytest.mark.parametrize("room", ROOMS)
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


def modules() -> dict[str, Path]:
    """Those of the rooms below the wings."""
    root = Path(castiron.__file__).parent
    found = {}
    for room in ROOMS:
        for path in sorted([*(root / room).rglob("*.py"), *root.glob(f"{room}.py")]):
            parts = ("castiron", *path.relative_to(root).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def above(name: str) -> list[str]:
    """A module's packages, which Python imports before it."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def begins_with(path: Path) -> list[str]:
    """The first of castiron's modules that a file imports, if it imports any."""
    found: list[str] = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            found += [node.module or ""]
        elif isinstance(node, ast.Import):
            found += [name.name for name in node.names]
    return [name for name in found if name.partition(".")[0] == "castiron"][:1]


WALK = """
import gc, importlib, os, sys
import numpy, pyarrow.compute, pyarrow.csv, pyarrow.parquet, pydantic, rich, ruamel.yaml, tokenizers
gc.disable()

def walk(ways):
    for name in {way[0]: None for way in ways}:
        if os.fork():
            if os.wait()[1]:
                sys.exit(1)  # the child has said why
            continue
        importlib.import_module(name)
        further = [way[1:] for way in ways if way[0] == name and way[1:]]
        for way in further:
            if way[-1] in sys.modules and not way[-1].startswith(name + "."):
                print("loaded before:", way[-1])
        walk([way for way in further if way[-1] not in sys.modules])
        sys.stdout.flush()
        os._exit(0)  # without taking all down in good order

walk([way.split() for way in sys.argv[1:]])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_every_module_can_be_imported_first() -> None:
    """No module leans on another having been imported before it.

    What a module finds that is imported first is what its packages have loaded, then what the import that it
    begins with has: that is done once for all modules that begin so, and each is imported in a copy of the
    process. Where that import leads to the module itself, the module is imported right after its packages.
    """
    first = {name: [*above(name), name] for name in modules()}
    ways = {name: [*above(name), *begins_with(path), name] for name, path in modules().items()}
    said = run_script(WALK, *map(" ".join, ways.values()))
    again = re.findall(r"loaded before: (\S+)", said)
    run_script(WALK, *(" ".join(first[name]) for name in again))
