"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or RECIPE/NAME.")]
Runs = Annotated[Path, typer.Option(metavar="DIR", help="Where runs are kept.")]
RUNS = Path("runs")
"""What `Runs` is by default."""
Which = Annotated[str, typer.Option(metavar="best|last", help="Which checkpoint.")]
Weights = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Use these weights, of any origin, in place of the run's."),
]
OnMismatch = Annotated[
    str, typer.Option(metavar="refuse|cast", help="What to do with weights of other formats than the run's.")
]
