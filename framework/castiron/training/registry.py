"""Finds recipes: registered ones by name, and anybody's own by file or module."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import os
import re
import sys
import traceback
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from castiron.diagnostics import ConfigError, Place, finding
from castiron.training.suggestions import did_you_mean, near

if TYPE_CHECKING:
    from castiron.training.recipe import Recipe

GROUP = "castiron.recipes"


@dataclass(frozen=True, slots=True)
class Registered:
    """A recipe as its package registers it; nothing of it is imported yet."""

    name: str
    target: str
    """`module:Class`."""
    package: str
    """Distribution that registers it, with its version."""


def registered() -> dict[str, Registered]:
    """Every registered recipe by name. Reads metadata only, and again when a package was installed."""
    return dict(_registered(tuple((entry, _changed(entry)) for entry in sys.path)))


def _changed(folder: str) -> int:
    """When something was added to a folder or taken away; 0 where there is none."""
    try:
        return os.stat(folder or ".").st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=1)
def _registered(path: tuple[tuple[str, int], ...]) -> dict[str, Registered]:
    found: dict[str, Registered] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: (p.name, not _ours(p))):
        package = f"{point.dist.name} {point.dist.version}" if point.dist else "?"
        # castiron's own names cannot be taken by another package.
        found.setdefault(point.name, Registered(point.name, point.value, package))
    return found


def headline(recipe: Registered) -> str:
    """What a recipe is, in a line: the docstring of its module, read without importing it."""
    try:
        file = module_file(recipe.target.partition(":")[0])
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) if file else None
    except (ImportError, OSError, SyntaxError, UnicodeDecodeError, ValueError):
        return ""
    return (docstring or "").partition("\n")[0]


def module_file(module: str) -> Path | None:
    """The source file of a module, found without importing anything of its package."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return None
    if not rest:
        return Path(spec.origin)
    path = Path(spec.origin).parent.joinpath(*rest)
    return next((f for f in (path / "__init__.py", path.with_suffix(".py")) if f.is_file()), None)


def find_recipe(name: str, *, folder: Path | None = None, place: Place | None = None) -> type[Recipe]:
    """The recipe that a config names. Imports its module, and with it, as a rule, a framework.

    Args:
        name: a registered name, `path/to/file.py:Class` or `package.module:Class`.
        folder: looked in first for a relative path; then the current folder.
        place: where the name is stated, for messages.

    Raises:
        ConfigError: unknown name (X809), import fails (X810), not a recipe (X811).
    """
    place = place or Place(key="recipe")
    if ":" not in name and not name.endswith(".py"):
        return _registered_recipe(name, place)
    source, _, cls = name.rpartition(":") if ":" in name else (name, "", "")
    if source.endswith(".py"):
        path = _existing(source, folder, place)
        module = _import(lambda: _import_file(path), f"'{source}'", place, path)
    else:
        module = _import_module(source, place)
    return _class_in(module, cls, source, place)


def absolute_name(name: str, *, folder: Path | None = None) -> str:
    """The name with the path of a recipe's file made absolute, so that it holds in any folder."""
    source, _, cls = name.rpartition(":")
    if not source.endswith(".py"):
        return name
    for base in (folder or Path(), Path()):
        if (base / source).is_file():
            return f"{(base / source).resolve()}:{cls}"
    return name


def recipe_file(recipe: type[Recipe]) -> Path:
    """The source file of a recipe."""
    return Path(str(sys.modules[recipe.__module__].__file__))


def _ours(point: EntryPoint) -> bool:
    return point.dist is not None and point.dist.name == "castiron"


def _registered_recipe(name: str, place: Place) -> type[Recipe]:
    known = registered()
    if name not in known:
        if "." in name and not name.startswith("."):
            remedy = f"A class in a module is named as {name.rpartition('.')[0]}:{name.rpartition('.')[2]}."
        else:
            remedy = did_you_mean(near(name, known))
        names = ", ".join(known)
        raise ConfigError(
            finding(
                "X809",
                "",
                place=place,
                expected=f"a registered recipe ({names}), my_file.py:MyRecipe or my.module:MyRecipe",
                received=f"'{name}'",
                remedy=remedy or None,
            )
        )
    module, _, cls = known[name].target.partition(":")
    return _class_in(_import_module(module, place), cls, module, place)


def _existing(source: str, folder: Path | None, place: Place) -> Path:
    bases = [folder, Path()] if folder else [Path()]
    for base in bases:
        if (base / source).is_file():
            return (base / source).resolve()
    beside = [p.name for base in bases for p in (base / source).parent.glob("*.py")]
    close = [str(Path(source).with_name(n)) for n in near(Path(source).name, beside)]
    raise ConfigError(
        finding(
            "X808",
            "The recipe's file does not exist.",
            place=place,
            received=f"'{source}'",
            remedy=did_you_mean(close) or "Correct the path.",
        )
    )


def _import_module(name: str, place: Place) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    return _import(lambda: importlib.import_module(name), f"'{name}'", place, None)


def _import_file(path: Path) -> ModuleType:
    """Import a file under a name that is the same in every process, so that its classes can be pickled.

    A file in a package (a folder with `__init__.py`) is imported as the package's module.
    """
    if (path.parent / "__init__.py").is_file():
        return _import_packaged(path)
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"castiron_user_{re.sub(r'[^0-9A-Za-z]', '_', path.stem)}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"'{path}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_packaged(path: Path) -> ModuleType:
    root = path.parent
    while (root.parent / "__init__.py").is_file():
        root = root.parent
    root = root.parent
    name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    module = importlib.import_module(name)
    if module.__file__ is None or not Path(module.__file__).samefile(path):
        raise ImportError(f"the module name '{name}' is taken by {module.__file__}; rename the folder")
    return module


def _import(load: Any, source: str, place: Place, path: Path | None) -> ModuleType:
    try:
        module: ModuleType = load()
        return module
    except SyntaxError as e:
        at = f"{e.filename}:{e.lineno}" if e.filename else source
        message = f"The recipe's file is not valid Python: {e.msg} at {at}."
        raise ConfigError(finding("X810", message, place=place)) from e
    except (Exception, SystemExit) as e:
        if isinstance(e, ModuleNotFoundError) and path is None and _is_itself(e.name, source):
            raise ConfigError(
                finding(
                    "X808",
                    f"There is no module {source}.",
                    place=place,
                    remedy="Correct the name, or start castiron from the folder that holds it.",
                )
            ) from e
        line = _own_line(e, path)
        what = f"{type(e).__name__}: {e}" if str(e) else type(e).__name__
        message = f"The recipe {source} fails to import{f' at {line}' if line else ''}: {what}"
        raise ConfigError(finding("X810", message, place=place)) from e


def _is_itself(missing: str | None, source: str) -> bool:
    return bool(missing) and f"{source.strip(chr(39))}.".startswith(f"{missing}.")


def _own_line(error: BaseException, path: Path | None) -> str:
    """`file:line` of the last frame in the user's own code: not Python's, not an installed package's."""
    frames = traceback.extract_tb(error.__traceback__)
    if path is not None:
        own = [f for f in frames if Path(f.filename) == path]
    else:
        foreign = ("<frozen", "site-packages", str(Path(__file__).parent))
        own = [f for f in frames if not any(part in f.filename for part in foreign)]
        own = [f for f in own if not f.filename.startswith(sys.base_prefix)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else ""


def _class_in(module: ModuleType, name: str, source: str, place: Place) -> type[Recipe]:
    from castiron.training.recipe import Recipe

    recipes = [
        n for n, v in vars(module).items()
        if isinstance(v, type) and issubclass(v, Recipe) and v.__module__ == module.__name__
    ]  # fmt: skip
    if not name:
        hint = f"Write {source}:{recipes[0]}." if recipes else f"Write {source}:MyRecipe."
        raise ConfigError(finding("X809", "The recipe's class is not named.", place=place, remedy=hint))
    found = getattr(module, name, None)
    if found is None:
        remedy = did_you_mean(near(name, recipes) or recipes[:3])
        raise ConfigError(
            finding("X809", f"'{source}' defines no '{name}'.", place=place, remedy=remedy or None)
        )
    if not (isinstance(found, type) and issubclass(found, Recipe)):
        kind = "class" if isinstance(found, type) else type(found).__name__
        raise ConfigError(
            finding(
                "X811",
                "",
                place=place,
                expected="a subclass of castiron.training.Recipe",
                received=f"the {kind} '{name}' of '{source}'",
            )
        )
    own = getattr(found, "name", None)
    if not (isinstance(own, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", own)):
        remedy = f'Give the class a line such as: name = "{_kebab(name)}"'
        message = f"The recipe '{name}' of '{source}' has no name that a folder can have."
        raise ConfigError(finding("X811", message, place=place, remedy=remedy))
    return found


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
