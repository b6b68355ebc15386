"""`castiron replay`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from castiron.policy import PrecisionPolicy
    from castiron.training.config_file import LoadedConfig
    from castiron.training.incident_folder import IncidentFolder


def replay(
    incident: Annotated[
        Path, typer.Argument(metavar="INCIDENT", help="An incident's folder: runs/R/N/incidents/step-12.")
    ],
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar="P", help="Try this policy: a preset or a short string; may be repeated."),
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="cpu|cuda", help="Try this device.")] = None,
    promote: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER", help="Try this layer in float32; may be repeated."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="FILE.py:CLASS", help="The recipe, where it lies elsewhere on this machine."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="For programs: {incident, replay, remedies, notes}.")
    ] = False,
) -> None:
    """Run a held step again, from its folder alone, and find out what mends it. Changes nothing.

    \b
    castiron replay runs/lstm-sentiment/first/incidents/step-12
    castiron replay STEP --policy float32 --promote head     which of them makes the fault go away
    """
    from castiron.cli import console
    from castiron.cli.usage import chosen
    from castiron.training.backend import Remedies, load_backend
    from castiron.training.incident_folder import IncidentFolder
    from castiron.training.incident_text import print_incident, replayed_lines

    if device is not None:
        device = chosen("--device", device, ("cpu", "cuda"))
    remedies = Remedies(
        policies=[_policy(p) for p in policy or ()], device=device, promote=tuple(promote or ())
    )
    folder = IncidentFolder.open(incident)
    if not json:
        print_incident(folder.incident, console.rich_console(), folder.path)
    loaded = _loaded(folder, recipe)
    with loaded.placing():
        found = load_backend(loaded.config.backend).replay(folder, loaded.config, loaded.recipe, remedies)
    if json:
        console.as_json(found.as_dict())
    else:
        console.say()
        for line, style in replayed_lines(found):
            console.say(line, style)


def _policy(text: str) -> PrecisionPolicy:
    """The policy that an argument names.

    Raises:
        ConfigError: it names none (X820).
    """
    from pydantic import ValidationError

    from castiron.diagnostics import ConfigError, finding
    from castiron.policy import PrecisionPolicy

    try:
        return PrecisionPolicy.parse(text)
    except ValidationError as e:
        message = str(e.errors()[0]["msg"]).removeprefix("Value error, ")
        raise ConfigError(
            finding("X820", f"{message[:1].upper()}{message[1:]}", received=f"--policy '{text}'")
        ) from None


def _loaded(folder: IncidentFolder, recipe: str | None) -> LoadedConfig:
    """The config in an incident's folder, with its recipe.

    Raises:
        CastironError: the incident is of no recipe, or the recipe is not on this machine (N515).
    """
    from castiron.diagnostics import CastironError
    from castiron.training.config_file import load_config

    config = folder.config
    if config is None:
        name = str(folder.facts.get("module") or folder.facts.get("root") or "a module").rpartition(".")[2]
        raise folder.not_replayable(
            f"The step is of {name}, which is no recipe: the command line cannot make it.",
            "Replay it from Python, with the module made as for the training: "
            f"castiron.lightning.replay({str(folder.path)!r}, {name}(…){_loss_of(folder)}).",
        )
    overrides = [] if recipe is None else [f"recipe={recipe}"]
    try:
        return load_config(config, overrides, folder=Path.cwd() if recipe is not None else None)
    except CastironError as e:
        if recipe is None and any(f.place.key == "recipe" for f in e.findings):
            e.findings = (
                *folder.not_replayable(
                    "The recipe of the run is not on this machine.",
                    "Install it, or say where it is: --recipe FILE.py:CLASS.",
                ).findings,
                *e.findings,
            )
        raise


def _loss_of(folder: IncidentFolder) -> str:
    """A bare loop's loss is known to nobody but its author."""
    return ", loss_of=lambda model, batch, i: …" if folder.facts.get("kind") == "loop" else ""
