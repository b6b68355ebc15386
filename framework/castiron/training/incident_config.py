"""The config and the recipe of an incident. No code that came with the folder is run."""

from __future__ import annotations

from pathlib import Path

from castiron.diagnostics import CastironError
from castiron.training.config_file import LoadedConfig, load_config
from castiron.training.incident_folder import IncidentFolder
from castiron.training.yaml_reader import read_file

_CODE = frozenset({".py", ".pyc", ".pyd", ".so", ".pth"})


def load_incident_config(folder: IncidentFolder, recipe: str | None = None) -> LoadedConfig:
    """The config in an incident's folder, with the recipe that it names.

    A folder may come from anywhere, and its config says which class to import. A recipe that is installed,
    and a file under an absolute path outside of the folder, are taken; whatever else has to be named by the
    caller.

    Args:
        folder: the incident.
        recipe: the recipe, said otherwise: `FILE.py:CLASS`.

    Raises:
        CastironError: the incident is of no recipe, the recipe is not on this machine, or it came with the
            folder (N515); the config does not hold any more.
    """
    config = folder.config
    if config is None:
        raise _no_recipe(folder)
    here = Path.cwd()
    if recipe is not None:
        return load_config(config, [f"recipe={recipe}"], folder=here)
    _refuse_what_came_along(folder, config)
    try:
        return load_config(config, folder=here)
    except CastironError as e:
        if any(f.place.key == "recipe" for f in e.findings):
            missing = folder.not_replayable(
                "The recipe of the run is not on this machine.",
                "Install it, or say where it is: --recipe FILE.py:CLASS.",
            )
            e.findings = (*missing.findings, *e.findings)
            e.args = ("\n".join(str(f) for f in e.findings),)
        raise


def _refuse_what_came_along(folder: IncidentFolder, config: Path) -> None:
    named = str(read_file(config, str(config)).tree.get("recipe", ""))
    file = Path(named.rpartition(":")[0] or named)
    inside = folder.path.resolve()
    came_along = file.suffix in _CODE and (not file.is_absolute() or file.resolve().is_relative_to(inside))
    code = sorted(p for p in inside.rglob("*") if p.suffix in _CODE)
    if came_along or code:
        raise folder.not_replayable(
            "The incident brings its code along, or finds it by where it lies. Replay runs no such code.",
            "Look at it; where you trust it, name it yourself: --recipe FILE.py:CLASS.",
            expected="a recipe that is installed, or under an absolute path outside of the folder",
            received=str(code[0]) if code else f"'{named}'",
        )


def _no_recipe(folder: IncidentFolder) -> CastironError:
    name = str(folder.facts.get("module") or folder.facts.get("root") or "a module").rpartition(".")[2]
    if folder.facts.get("wing") == "tensorflow":
        return folder.not_replayable(
            f"The step is of {name}, which is no recipe: the command line cannot make it.",
            "Replay it from Python, with a function that makes the model as for the training, compiled: "
            f"castiron.keras.replay_incident({str(folder.path)!r}, make).",
        )
    # A bare loop's loss is known to nobody but its author.
    loss = ", loss_of=lambda model, batch, i: …" if folder.facts.get("kind") == "loop" else ""
    return folder.not_replayable(
        f"The step is of {name}, which is no recipe: the command line cannot make it.",
        "Replay it from Python, with the module made as for the training: "
        f"castiron.lightning.replay({str(folder.path)!r}, {name}(…){loss}).",
    )
