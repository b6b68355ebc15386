"""A user's own project, made from an installed recipe."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from castiron.cli.copying import write_new
from castiron.diagnostics import ConfigError, Place, RunError, finding
from castiron.training.configs import packaged_configs
from castiron.training.registry import module_file, registered
from castiron.training.suggestions import did_you_mean, near

README = """# {project}

A recipe of your own, copied from castiron's `{recipe}`. Change anything.

```
castiron train {package}/default.yaml                 # train
castiron train {package}/default.yaml --dry-run       # config, data, plan and steps; trains nothing
castiron train {package}/default.yaml optimizer.lr=3e-4 precision=bf16-mixed
castiron validate {package}/*.yaml
python -m pytest                                      # trains a few steps (pip install pytest)
```

- `{package}/{file}`: data contract, model, loss, metrics.
  `castiron recipes show {package}/{file}:{cls}` lists the settings of its model.
- `{package}/default.yaml`: its default config; the other configs state what differs.
- Runs are kept in `runs/{name}/`; `castiron board` shows them.
"""

TEST = '''"""The recipe trains: a few steps on its default data."""

from __future__ import annotations

from pathlib import Path

from castiron.training.config_file import load_config
from castiron.training.launch import train

CONFIG = Path(__file__).parents[1] / "{package}" / "default.yaml"


def test_trains_a_few_steps(tmp_path):
    few = ["trainer.max_steps=3", "trainer.limit_validation=2", "trainer.limit_test=2"]
    loaded = load_config(CONFIG, few)
    run, outcome = train(loaded, runs=tmp_path)
    assert outcome.status == "completed"
    assert outcome.steps == 3
    assert (run.path / "summary.json").is_file()
'''


@dataclass(frozen=True, slots=True)
class Project:
    """What was written."""

    files: tuple[Path, ...]
    config: Path


def copy_recipe(recipe: str, folder: Path) -> Project:
    """Copy the installed folder of a recipe, with its configs, a README and a test.

    Imports within the recipe's package are rewritten to the copy, and its name is the project's.

    Raises:
        ConfigError: no such recipe.
        RunError: the folder is not empty, or cannot be written.
    """
    known = registered()
    if recipe not in known:
        remedy = did_you_mean(near(recipe, known)) or f"There are: {', '.join(known)}."
        raise ConfigError(
            finding("X809", "", expected="a registered recipe", received=f"'{recipe}'", remedy=remedy)
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(
            finding("X824", "The folder is not empty; nothing is overwritten.", place=Place(file=str(folder)))
        )
    module, _, cls = known[recipe].target.partition(":")
    source = _folder_of(module)
    project = folder.resolve().name
    package = re.sub(r"\W", "_", project).lower().strip("_") or "my_recipe"
    package = f"recipe_{package}" if package[0].isdigit() else package
    name = re.sub(r"[^a-z0-9]+", "-", project.lower()).strip("-") or "my-recipe"
    written = []

    def write(path: str, content: str | bytes) -> Path:
        target = folder / path
        write_new(target, content)
        written.append(target)
        return target

    defining = _defining_file(source, cls)
    for file in sorted(source.glob("*.py")):
        text = file.read_text(encoding="utf-8").replace(module, package)
        if file == defining:
            text = _renamed(text, recipe, name)
        write(f"{package}/{file.name}", text)
    for file in sorted(source.glob("*.gz")):  # embedded tables and images
        write(f"{package}/{file.name}", file.read_bytes())
    for config, path in packaged_configs().items():
        if config.startswith(f"{recipe.replace('-', '_')}/"):
            text = path.read_text(encoding="utf-8")
            text = re.sub(r"(?m)^recipe:.*$", f"recipe: {defining.name}:{cls}", text)
            write(f"{package}/{path.name}", text.replace(f"{config} ", f"{package}/{path.name} "))
    default = folder / package / "default.yaml"
    if default not in written:
        write(f"{package}/default.yaml", f"recipe: {defining.name}:{cls}\n")
    values = {
        "project": project,
        "recipe": recipe,
        "package": package,
        "cls": cls,
        "name": name,
        "file": defining.name,
    }
    write("README.md", README.format(**values))
    write("tests/test_recipe.py", TEST.format(**values))
    return Project(tuple(written), default)


def _folder_of(module: str) -> Path:
    file = module_file(module)
    if file is None:
        raise RunError(finding("X808", f"The source of '{module}' is not installed."))
    return file.parent


def _defining_file(source: Path, cls: str) -> Path:
    """The file that defines a class."""
    for file in sorted(source.glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.ClassDef) and node.name == cls for node in tree.body):
            return file
    raise RunError(finding("X811", f"No file defines '{cls}'.", place=Place(file=str(source))))


def _renamed(text: str, old: str, new: str) -> str:
    """The recipe's name replaced, so that its runs and its default config are the project's own."""
    return re.sub(rf"""(?m)^(    name(?:: [\w\[\]]+)? = )["']{re.escape(old)}["']""", rf'\1"{new}"', text)
