"""From a config file, or a recipe's name, and arguments to a validated config; every mistake at once.

What is stated later wins: defaults of the fields < the file, or the default config of a recipe that is
named in its place < the arguments.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from castiron.diagnostics import CastironError, ConfigError, Finding, Place, finding
from castiron.training.config import RunConfig
from castiron.training.config_errors import findings_of, keys_of, models_at
from castiron.training.config_merge import IsOpen, Merged
from castiron.training.configs import packaged_configs
from castiron.training.overrides import read_overrides
from castiron.training.registry import absolute_name, find_recipe, recipe_file, registered
from castiron.training.suggestions import did_you_mean, near, near_key
from castiron.training.yaml_reader import Document, KeyPath, describe, read_file

if TYPE_CHECKING:
    from castiron.training.recipe import Recipe

SUFFIXES = (".yaml", ".yml")
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A valid config, the recipe it names, and where its parts were stated."""

    config: RunConfig
    recipe: type[Recipe]
    source: str
    """The file, packaged config or recipe it was read from, as it was named."""
    merged: Merged

    def placed(self, findings: Iterable[Finding]) -> list[Finding]:
        """Findings about keys of the config, with the file and line where these were stated."""
        return [_placed(f, self.merged) for f in findings]

    @contextmanager
    def placing(self) -> Iterator[None]:
        """Errors raised within, about keys of the config, get the file and line where these are stated."""
        try:
            yield
        except CastironError as e:
            e.findings = tuple(self.placed(e.findings))
            e.args = ("\n".join(str(f) for f in e.findings),)
            raise


def load_config(
    source: str | Path, overrides: Sequence[str] = (), *, folder: Path | None = None
) -> LoadedConfig:
    """Read, merge and validate a config.

    Args:
        source: a YAML file, a packaged config (`lstm_sentiment/sst2`), or a recipe (a registered name,
            `my_file.py:MyRecipe`): its default config.
        overrides: arguments `dotted.key=value`; later ones win.
        folder: where a relative path of a recipe is looked for first; the file's own folder by default.

    Raises:
        ConfigError: with a finding for every mistake, each with its place.
    """
    named = resolve_source(str(source))
    documents = [read_file(named.file, named.shown)] if named.file else [_only_recipe(named.recipe or "")]
    documents += read_overrides(overrides)
    problems = [f for d in documents for f in d.findings]
    if named.file and documents[0].findings and not documents[0].tree:
        raise ConfigError(problems)  # nothing was read; what else could be said would mislead
    folder = folder or (named.file.parent if named.file else None)
    stated = Merged(documents)
    recipe, trouble = _recipe(stated, folder)
    problems += trouble
    merged = stated
    if named.file is None and recipe is not None and (default := default_config(recipe)):
        base = read_file(default, _shown(default))
        problems += base.findings
        merged = Merged([base, *documents], is_open=_open_keys(recipe))
    if recipe is None and "recipe" in merged.tree:
        # What else is wrong can be told without the recipe's own part.
        merged.tree.pop("model", None)
    config, trouble = validate_tree(merged, recipe)
    problems += trouble
    if problems or config is None or recipe is None:
        raise ConfigError(_once(problems))
    return LoadedConfig(_anchored(config, folder), recipe, str(source), merged)


def validate_tree(merged: Merged, recipe: type[Recipe] | None) -> tuple[RunConfig | None, list[Finding]]:
    """The config of a merged tree (None where it is refused), and what is wrong with it."""
    problems: list[Finding] = []
    tree = dict(merged.tree)
    model = tree.get("model", {})
    settings: BaseModel | None = None
    if recipe is not None and isinstance(model, Mapping):
        tree["model"] = {}
        problems += _undeclared(model, recipe.Config, merged)
        try:
            settings = _strictly(recipe.Config, model)
        except ValidationError as e:
            problems += findings_of(e, recipe.Config, model, merged.locate, ("model",))
    try:
        # Not as JSON: validators that look at the raw value would make pydantic refuse lists for tuples.
        config = RunConfig.model_validate(_tuples(tree), strict=True)
    except ValidationError as e:
        return None, findings_of(e, RunConfig, tree, merged.locate) + problems
    if recipe is not None and config.backend not in recipe.backends:
        place = merged.locate(("backend",))
        expected = " or ".join(f"'{b}'" for b in recipe.backends)
        message = f"The recipe '{config.recipe}' has no model for this backend."
        problems.append(
            finding("X814", message, place=place, expected=expected, received=f"'{config.backend}'")
        )
    if problems or settings is None:
        return None, problems
    return config.model_copy(update={"model": settings}), []


def configure(recipe: type[Recipe], **settings: Any) -> RunConfig:
    """A config for a recipe class from Python: `configure(LSTMSentiment, trainer={"max_epochs": 1})`.

    Starts from the recipe's default config, as the command line does.

    Raises:
        ConfigError: with a finding for every mistake.
    """
    name = settings.pop("recipe", None) or name_of(recipe)
    plain = json.loads(json.dumps(settings, default=_plain))
    default = default_config(recipe)
    documents = [read_file(default, _shown(default))] if default else []
    merged = Merged([*documents, Document({**plain, "recipe": name})], is_open=_open_keys(recipe))
    config, problems = validate_tree(merged, recipe)
    if config is None or problems:
        raise ConfigError(problems)
    return config


def json_schema(recipe: type[Recipe] | None = None) -> dict[str, Any]:
    """The JSON Schema of a config file, for editors; with the recipe's own part where one is given."""
    schema = RunConfig.model_json_schema(by_alias=True)
    if recipe is not None:
        part = recipe.Config.model_json_schema(by_alias=True)
        schema["$defs"] = {**schema.get("$defs", {}), **part.pop("$defs", {})}
        schema["properties"]["model"] = part
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "castiron config", **schema}


# --- what a name stands for ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """What `castiron train NAME` names: a file to read, or a recipe."""

    shown: str
    file: Path | None = None
    recipe: str | None = None


def resolve_source(name: str) -> Source:
    """A path of a YAML file, the name of a packaged config, or a recipe.

    Raises:
        ConfigError: none of these (X808), with near misses.
    """
    path = Path(name)
    if path.suffix in SUFFIXES:
        if path.exists():
            return Source(name, file=path)
        raise ConfigError(_not_found(name, _beside(path)))
    packaged = packaged_configs()
    if name in packaged:
        return Source(_shown(packaged[name]), file=packaged[name])
    if ":" in name or name.endswith(".py") or name in registered():
        return Source(name, recipe=name)
    if path.exists():
        return Source(name, file=path)
    known = list(packaged) if "/" in name else [*registered(), *packaged]
    close = near(name, known) or _beside(path)
    raise ConfigError(_not_found(name, close))


def default_config(recipe: type[Recipe]) -> Path | None:
    """The default config of a recipe, or of the nearest recipe that it inherits from; None: it has none.

    It is `default.yaml` in the recipe's package, or the packaged config of the recipe's name.
    """
    packaged = packaged_configs()
    for cls in recipe.__mro__:
        name = cls.__dict__.get("name")
        if not isinstance(name, str):
            continue
        beside = recipe_file(cls).with_name("default.yaml")
        if beside.is_file() and beside.with_name("__init__.py").is_file():
            return beside
        if found := packaged.get(f"{name.replace('-', '_')}/default"):
            return found
    return None


def name_of(recipe: type[Recipe]) -> str:
    """What a config calls this class: its registered name, else `file.py:Class`, else `module:Class`."""
    target = f"{recipe.__module__}:{recipe.__qualname__}"
    for known in registered().values():
        module, _, cls = known.target.partition(":")
        if cls == recipe.__qualname__ and f"{recipe.__module__}.".startswith(f"{module}."):
            return known.name
    is_script = recipe.__module__ == "__main__" and hasattr(sys.modules["__main__"], "__file__")
    if is_script or recipe.__module__.startswith("castiron_user_"):
        return f"{recipe_file(recipe).resolve()}:{recipe.__qualname__}"
    return target


def _not_found(name: str, close: Sequence[str]) -> Finding:
    what = "file" if Path(name).suffix in SUFFIXES else "config file, packaged config or recipe"
    remedy = did_you_mean(close) or "`castiron configs list` and `castiron recipes list` show what there is."
    return finding("X808", f"There is no such {what}.", received=f"'{name}'", remedy=remedy)


def _beside(path: Path) -> list[str]:
    """Near misses of a missing file: files in its folder, files of its name elsewhere, packaged configs."""
    folder = path.parent if path.parent.is_dir() else Path()
    try:
        files = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES)[:500]
    except OSError:
        files = []
    by_name = {p.name: str(p) for p in files}
    close = [by_name[n] for n in near(path.name, by_name)]
    packaged = packaged_configs()
    inside = f"{path.parent.name}/{path.stem}"
    return close or near(inside, packaged) or [n for n in packaged if n.endswith(f"/{path.stem}")]


def _shown(path: Path) -> str:
    """A path as messages show it: relative where it lies below the current folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def _only_recipe(name: str) -> Document:
    place = Place(file=f"argument '{name}'", key="recipe")
    return Document({"recipe": name}, {("recipe",): place}, {("recipe",): place})


def _recipe(stated: Merged, folder: Path | None) -> tuple[type[Recipe] | None, list[Finding]]:
    if "recipe" not in stated.tree:
        return None, []  # validation says that it is missing
    name = stated.tree["recipe"]
    place = stated.locate(("recipe",))
    if not isinstance(name, str):
        received = describe(name)
        return None, [finding("X802", "", place=place, expected="a recipe's name (text)", received=received)]
    try:
        return find_recipe(name, folder=folder, place=place), []
    except CastironError as e:
        return None, list(e.findings)


def _open_keys(recipe: type[Recipe]) -> IsOpen:
    """Tells the paths below which the user chooses the keys, in the recipe's part as well."""

    def is_open(path: KeyPath) -> bool:
        model, rest = (recipe.Config, path[1:]) if path[0] == "model" else (RunConfig, path)
        return not models_at(model, rest)

    return is_open


def _strictly(model: type[M], tree: Mapping[str, Any]) -> M:
    """Validate plain values without any conversion (text is no number); JSON's lists become tuples."""
    return model.model_validate_json(json.dumps(tree), strict=True)


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _undeclared(given: Mapping[str, Any], model: type[BaseModel], merged: Merged) -> list[Finding]:
    """Unknown keys of a recipe's part whose Config forgot `extra="forbid"`: these too are refused."""
    if model.model_config.get("extra") in ("forbid", "allow"):
        return []
    known = keys_of(model)
    problems = []
    for key in given:
        if key not in known:
            remedy = (
                did_you_mean(near_key(f"model.{key}", known, ())) or f"'model' takes: {', '.join(known)}."
            )
            place = merged.locate(("model", key), True)
            problems.append(
                finding("X801", "There is no such key.", place=place, received=f"'{key}'", remedy=remedy)
            )
    return problems


def _anchored(config: RunConfig, folder: Path | None) -> RunConfig:
    """Relative paths made absolute, so that the saved config means the same files in any folder."""
    splits = {
        split: _absolute(paths)
        for split in ("train", "validation", "test")
        if (paths := getattr(config.data, split)) is not None
    }
    data = config.data.model_copy(update=splits)
    recipe = absolute_name(config.recipe, folder=folder)
    return config.model_copy(update={"data": data, "recipe": recipe})


def _absolute(paths: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if isinstance(paths, str):
        return os.path.abspath(os.path.expanduser(paths))
    return tuple(os.path.abspath(os.path.expanduser(p)) for p in paths)


def _placed(f: Finding, merged: Merged) -> Finding:
    """The finding with file, line and column of the key that it is about."""
    key = f.place.key or ("precision" if f.code.startswith(("H7", "L2")) else None)
    if f.place.file is not None or key is None:
        return f
    at = merged.locate(_key_path(key, merged))
    place = dataclasses.replace(f.place, file=at.file, line=at.line, column=at.column, key=key)
    return dataclasses.replace(f, place=place)


def _key_path(key: str, merged: Merged) -> tuple[str, ...]:
    """The path of a dotted key whose parts may hold dots themselves (globs of layer rules)."""
    path: list[str] = []
    node: Any = merged.tree
    rest = key
    while rest:
        names = sorted(node, key=len, reverse=True) if isinstance(node, Mapping) else []
        part = next((n for n in names if rest == n or rest.startswith(f"{n}.")), rest.partition(".")[0])
        path.append(part)
        node = node.get(part) if isinstance(node, Mapping) else None
        rest = rest[len(part) + 1 :]
    return tuple(path)


def _once(problems: Sequence[Finding]) -> list[Finding]:
    """Each finding once, in the order of the lines."""
    unique = {(f.code, str(f.place), f.message, f.received): f for f in problems}
    return sorted(unique.values(), key=lambda f: (f.place.file or "", f.place.line or 0, f.place.column or 0))


def _plain(value: Any) -> Any:
    """Models and paths within settings given in Python, as plain values."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"Expected plain values, models or paths. Received {type(value).__name__}.")
