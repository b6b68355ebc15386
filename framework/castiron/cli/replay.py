"""`castiron replay`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from castiron.cli.options import RUNS, Runs

if TYPE_CHECKING:
    from castiron.policy import PrecisionPolicy


def replay(
    incident: Annotated[
        Path,
        typer.Argument(metavar="INCIDENT", help="An incident's folder, or RECIPE/NAME of a run with one."),
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
    runs: Runs = RUNS,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="FILE.py:CLASS", help="The recipe, where it lies elsewhere on this machine."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="For programs: {incident, replay, remedies, notes}.")
    ] = False,
) -> None:
    """Run a held step again, and find out what mends it.

    From its folder alone; nothing is changed.

    \b
    castiron replay runs/lstm-sentiment/first/incidents/step-12
    castiron replay STEP --policy float32 --promote head     which of them makes the fault go away
    """
    from castiron.cli import console
    from castiron.cli.usage import chosen
    from castiron.training.backend import Remedies, load_backend
    from castiron.training.incident_config import load_incident_config
    from castiron.training.incident_folder import IncidentFolder
    from castiron.training.incident_text import print_incident, replayed_lines

    if device is not None:
        device = chosen("--device", device, ("cpu", "cuda"))
    remedies = Remedies(
        policies=[_policy(p) for p in policy or ()], device=device, promote=tuple(promote or ())
    )
    below = runs / incident
    folder = IncidentFolder.open(below if below.exists() and not incident.exists() else incident)
    if not json:
        print_incident(folder.incident, console.rich_console(), folder.path)
    loaded = load_incident_config(folder, recipe)
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
