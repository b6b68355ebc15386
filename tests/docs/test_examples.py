"""What README and docs show: commands exist, configs are accepted, Python compiles, links lead somewhere."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML

from castiron.cli.main import app
from castiron.policy import PrecisionPolicy
from castiron.training.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "recipes").rglob("README.md")),
]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def blocks(language: str) -> Iterator[Any]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for n, block in enumerate(re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)):
            yield pytest.param(block, id=f"{page.parent.name}-{page.name}-{n}")


def commands(text: str) -> Iterator[list[str]]:
    """The words of each `castiron …` line, comments left out."""
    for line in text.splitlines():
        if line.strip().startswith("castiron "):
            yield shlex.split(line, comments=True)[1:]


def check(words: list[str]) -> None:
    """The command exists, and takes these arguments and options."""
    command: Any = typer.main.get_command(app)
    path, rest = "castiron", list(words)
    while hasattr(command, "commands"):
        name = rest.pop(0)
        assert name in command.commands, f"{path} has no command {name!r}"
        command, path = command.commands[name], f"{path} {name}"
    command.make_context(path, rest, resilient_parsing=False).close()


@pytest.mark.parametrize("block", list(blocks("bash")))
def test_commands(block: str) -> None:
    for words in commands(block):
        check(words)
    for script in re.findall(r"^bash (\S+)", block, flags=re.M):
        assert (ROOT / script).is_file()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_launch_lines_of_the_configs(path: Path) -> None:
    head = [line[1:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    found = list(commands("\n".join(head)))
    assert found, "a config says how it is launched"
    for words in found:
        check(words)


@pytest.mark.parametrize("block", list(blocks("yaml")))
def test_configs(block: str) -> None:
    tree = YAML(typ="safe").load(block)
    if "recipe" in tree:
        RunConfig.model_validate(tree)
    else:
        PrecisionPolicy.model_validate(tree["precision"])


@pytest.mark.parametrize("block", list(blocks("python")))
def test_python(block: str) -> None:
    """It compiles, and what it imports is there."""
    tree = ast.parse(block)
    imports = [
        node
        for node in tree.body
        if isinstance(node, ast.Import)
        or (isinstance(node, ast.ImportFrom) and node.module != "my_recipe")  # a file of the page's own
    ]
    exec(compile(ast.Module(imports, []), "example", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_links(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target and "/generated/" not in target:
            assert (page.parent / target).exists(), f"{page.name} → {target}"


def test_the_first_screen_of_the_readme_says_how_to_begin() -> None:
    first = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:45]
    assert "bash scripts/train.sh" in "\n".join(first)
    assert "bash scripts/test.sh" in "\n".join(first)
