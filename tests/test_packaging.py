"""The wheel: what is in it, what it says of itself, and that it declares what it imports."""

from __future__ import annotations

import ast
import email
import importlib.metadata
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import castiron

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("castiron-*.whl")
    return zipfile.ZipFile(built)


def test_it_holds_two_packages_and_the_configs_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = [n for n in wheel.namelist() if ".dist-info/" not in n]
    assert {n.partition("/")[0] for n in names} == {"castiron", "castiron_recipes"}
    assert {"castiron/py.typed", "castiron_recipes/py.typed"} <= set(names)
    configs = {p.relative_to(ROOT).as_posix() for p in (ROOT / "configs").rglob("*.yaml")}
    assert configs
    assert configs == {n.removeprefix("castiron/") for n in names if n.startswith("castiron/configs/")}
    assert {Path(n).suffix for n in names} <= {".py", ".typed", ".yaml", ".md", ".gz"}
    sources = {
        p.relative_to(ROOT / "framework").as_posix() for p in (ROOT / "framework/castiron").rglob("*.py")
    }
    assert sources <= set(names)


def test_what_it_says_of_itself(wheel: zipfile.ZipFile) -> None:
    (path,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(path))
    assert metadata["Version"] == castiron.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == "<3.14,>=3.11"
    assert metadata.get_payload(), "the README is its description"


def test_recipes_are_registered(wheel: zipfile.ZipFile) -> None:
    (path,) = (n for n in wheel.namelist() if n.endswith("entry_points.txt"))
    written = wheel.read(path).decode()
    assert "castiron = castiron.cli.main:run" in written
    for name, target in PROJECT["entry-points"]["castiron.recipes"].items():
        assert f"{name} = {target}" in written


# --- what it imports ----------------------------------------------------------------------------------------


def imported(folder: Path) -> dict[str, str]:
    """Top-level package → a file that imports it; the standard library and our own left out."""
    found: dict[str, str] = {}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                names = [
                    a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)
                ]
            for name in names:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names and not top.startswith("castiron"):
                    found.setdefault(top, str(path.relative_to(ROOT)))
    return found


def test_everything_imported_is_declared() -> None:
    declared = {canonicalize_name(Requirement(r).name) for r in PROJECT["dependencies"]}
    declared |= {
        canonicalize_name(Requirement(r).name) for r in PROJECT["optional-dependencies"]["tensorflow"]
    }
    homes = importlib.metadata.packages_distributions()
    transitive = {"pydantic_core": "pydantic"}  # pinned by pydantic to one version
    undeclared = {}
    for folder in ("framework", "recipes"):
        for top, where in imported(ROOT / folder).items():
            owners = {canonicalize_name(d) for d in homes.get(transitive.get(top, top), [top])}
            owners = {"tensorflow" if o == "tensorflow-cpu" else o for o in owners}  # a build of the same
            if not owners & declared:
                undeclared[top] = where
    assert undeclared == {}


def test_everything_declared_is_imported() -> None:
    homes = importlib.metadata.packages_distributions()
    used = {
        canonicalize_name(d)
        for folder in ("framework", "recipes")
        for top in imported(ROOT / folder)
        for d in homes.get(top, [])
    }
    assert sorted({canonicalize_name(Requirement(r).name) for r in PROJECT["dependencies"]} - used) == []


def test_constraints_pin_everything_that_is_declared() -> None:
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            assert canonicalize_name(name) not in pinned, f"{name} is pinned twice"
            pinned[canonicalize_name(name)] = version
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["dev"], *extras["docs"]]:
        requirement = Requirement(text)
        version = pinned.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(version), (
            f"constraints.txt pins {requirement.name} to {version}"
        )
