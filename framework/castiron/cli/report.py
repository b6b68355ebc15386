"""`castiron report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from castiron.cli.options import RUNS, Run, Runs


def report(
    run: Run,
    html: Annotated[bool, typer.Option("--html", help="Write one page, to be opened anywhere.")] = False,
    terminal: Annotated[bool, typer.Option("--terminal", help="Print it (the default).")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where the page goes [RUN/report.html]."),
    ] = None,
    runs: Runs = RUNS,
) -> None:
    """Tell a run, in the terminal or on one page.

    Verdict, plan, data, audit, curves, numerical health, incidents, environment.

    \b
    castiron report lstm-sentiment/first
    castiron report lstm-sentiment/first --html       one self-contained page, opens offline
    """
    from castiron.cli import console
    from castiron.training.run_directory import RunDirectory
    from castiron.training.run_report import as_text, gather

    found = RunDirectory.open(run, runs)
    told = gather(found)
    if terminal or not (html or output):
        console.say(as_text(told).rstrip("\n"))
    if html or output:
        from castiron.data.files import written_atomically
        from castiron.training.report_page import as_html
        from castiron.training.writing import written

        page = output or found.path / "report.html"
        with written(page), written_atomically(page) as file:
            file.write(as_html(told).encode("utf-8"))
        console.say(f"{page}")
