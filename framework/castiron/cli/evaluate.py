"""`castiron evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or RECIPE/NAME.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings said otherwise: data.test=other.csv."),
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(metavar="SPLIT", help="train, validation or test; may be repeated.")
    ] = None,
    checkpoint: Annotated[str, typer.Option(metavar="best|last", help="Which checkpoint.")] = "best",
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Use these weights, of any origin, in place of the run's."),
    ] = None,
    on_mismatch: Annotated[
        str,
        typer.Option(metavar="refuse|cast", help="What to do with weights of other formats than the run's."),
    ] = "refuse",
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Where runs are kept.")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="For programs: {split: {metric: value}}.")] = False,
) -> None:
    """Measure a trained run, in its own policy.

    \b
    castiron evaluate lstm-sentiment/first
    castiron evaluate lstm-sentiment/first data.test=other.tsv --split test --json
    """
    from castiron.cli import console
    from castiron.cli.tables import metrics_table
    from castiron.cli.usage import chosen, job_of

    splits = [chosen("--split", s, ("train", "validation", "test")) for s in split or ["test"]]
    which = chosen("--checkpoint", checkpoint, ("best", "last"))
    backend, job, loaded = job_of(run, runs, which, overrides or [], weights=weights, on_mismatch=on_mismatch)
    with loaded.placing():
        metrics = backend.evaluate(job, splits)
    if json:
        console.as_json(metrics)
    else:
        metrics_table(metrics)
