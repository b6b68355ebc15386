"""`castiron convert`."""

from __future__ import annotations

from typing import Annotated

import typer

from castiron.cli.options import RUNS, Run, Runs, Which


def convert(
    run: Run,
    to: Annotated[str, typer.Option("--to", metavar="torch|tensorflow", help="The backend to carry it to.")],
    name: Annotated[str | None, typer.Option(help="Name of the new run [RUN-BACKEND].")] = None,
    checkpoint: Which = "best",
    runs: Runs = RUNS,
) -> None:
    """Carry a trained run to the other backend.

    The same weights, to evaluate, predict and export.

    \b
    castiron convert lstm-sentiment/first --to tensorflow
    """
    from castiron.cli import console
    from castiron.cli.usage import chosen
    from castiron.training.converting import convert as carry
    from castiron.training.run_directory import RunDirectory

    backend = chosen("--to", to, ("torch", "tensorflow"))
    which = chosen("--checkpoint", checkpoint, ("best", "last"))
    new = carry(RunDirectory.open(run, runs), backend, runs=runs, name=name, which=which)
    console.say(str(new.path))
