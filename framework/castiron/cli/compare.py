"""`castiron compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from castiron.cli.options import RUNS, Runs

if TYPE_CHECKING:
    from castiron.training.comparing import Comparison

_ROWS = 40
"""Layers of a table on the terminal."""


def compare(
    config: Annotated[str, typer.Argument(metavar="CONFIG|RECIPE", help="What is trained under each.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    policies: Annotated[
        str,
        typer.Option(
            metavar="A,B,…", help="Presets; or short forms of policies, which have commas, parted by ';'."
        ),
    ] = "float64,float32,bf16-mixed",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of each.")] = 100,
    runs: Runs = RUNS,
    name: Annotated[str | None, typer.Option(help="Of the folder below DIR/compare [the time].")] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    html: Annotated[bool, typer.Option("--html", help="Write one page, to be opened anywhere.")] = False,
) -> None:
    """One recipe under several policies, side by side.

    The same seed, batches and initial weights. Each layer is held against that of the widest policy, and the
    first that is more than its value rounded is named.

    \b
    castiron compare lstm-sentiment --policies float32,bf16-mixed --html
    castiron compare deep-relu --policies float64,float32 --html
    """
    from castiron.cli import console
    from castiron.training.compare_files import PAGE, keep
    from castiron.training.comparing import compare as find

    parted = policies.split(";" if ";" in policies else ",")
    quiet = (lambda _: None) if json else console.note
    found = find(config, [p.strip() for p in parted if p.strip()], overrides or [], steps=steps, say=quiet)
    folder = keep(found, runs, name, html=html)
    if json:
        console.as_json({**found.as_dict(), "folder": str(folder)})
    else:
        _tell(found)
        console.say()
        console.say(f"{folder / PAGE if html else folder}")
    if not found.reference:
        raise typer.Exit(1)


def _tell(found: Comparison) -> None:
    from castiron.cli import console
    from castiron.training.compare_page import LAYERS, SIDES, layer_rows, side_rows

    console.heading(f"{found.recipe}, seed {found.seed}, {found.steps:,} steps on {found.device}")
    console.table(SIDES, side_rows(found), right=(3,))
    for side in found.sides:
        if side.differences:
            console.heading(f"{side.name} against {found.reference}, before the first step")
            rows = layer_rows(side.differences[0]["activations"], found)
            console.table(LAYERS, rows[:_ROWS], right=range(2, 7))
            if len(rows) > _ROWS:
                console.say(f"and {len(rows) - _ROWS} layers more")
        elif side.ended:
            console.heading(side.name)
        for line in found.verdict(side):
            console.say(line)
