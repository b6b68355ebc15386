"""`castiron inspect` and `castiron export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from castiron.cli.options import RUNS, Run, Runs, Which


def inspect(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A checkpoint: torch, Lightning, safetensors, .keras or HDF5."),
    ],
    tensors: Annotated[
        bool, typer.Option("--tensors", help="List every tensor, however many there are.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Look into a checkpoint of any origin. Nothing in it is executed.

    \b
    castiron inspect runs/lstm-sentiment/first/checkpoints/last.ckpt
    castiron inspect stranger.pt --json
    """
    from castiron.cli import console
    from castiron.training.inspection.inspect import inspect_file

    found = inspect_file(file)
    if json:
        console.as_json(found.as_dict())
    else:
        console.fields(found.lines())
        shown = list(found.tensors.items())
        if not tensors:
            shown = shown[:40]
        if shown:
            console.say()
            rows = [(name, r.dtype, "×".join(map(str, r.shape)) or "scalar") for name, r in shown]
            console.table(("tensor", "format", "shape"), rows, right=(2,))
        if len(found.tensors) > len(shown):
            console.say(f"… and {len(found.tensors) - len(shown):,} more (--tensors)")
        if found.findings:
            console.findings(found.findings)
    raise typer.Exit(1 if found.findings else 0)


def export(
    run: Run,
    file: Annotated[Path, typer.Argument(metavar="FILE.safetensors", help="What to write.")],
    checkpoint: Which = "best",
    runs: Runs = RUNS,
) -> None:
    """Write a run's weights as safetensors.

    Its precision manifest is in the header.

    \b
    castiron export lstm-sentiment/first weights.safetensors
    """
    from castiron.cli import console
    from castiron.cli.usage import chosen, job_of
    from castiron.diagnostics import ConfigError, Place, RunError, finding

    which = chosen("--checkpoint", checkpoint, ("best", "last"))
    backend, job, _ = job_of(run, runs, which)
    if not hasattr(backend, "export"):
        raise ConfigError(
            finding(
                "X815",
                f"The checkpoints of backend {backend.name} are safetensors already.",
                place=Place(file=str(job.checkpoint)),
            )
        )
    if file.suffix != ".safetensors":
        raise ConfigError(
            finding("X820", "", expected="a file name that ends in .safetensors", received=f"'{file}'")
        )
    if file.exists():
        raise RunError(finding("X824", "The file is there already.", place=Place(file=str(file))))
    backend.export(job, file)
    console.say(str(file))
