"""`castiron evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from castiron.cli.options import RUNS, OnMismatch, Run, Runs, Weights, Which


def evaluate(
    run: Run,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings said otherwise: data.test=other.csv."),
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(metavar="SPLIT", help="train, validation or test; may be repeated.")
    ] = None,
    checkpoint: Which = "best",
    weights: Weights = None,
    on_mismatch: OnMismatch = "refuse",
    runs: Runs = RUNS,
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
