"""`castiron health`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from castiron.training.calibration import Measured


def health(
    target: Annotated[
        str, typer.Argument(metavar="CONFIG|RECIPE|RUN", help="A model as it begins, or a trained run's.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    batches: Annotated[int, typer.Option(min=1, help="Training batches to look at.")] = 20,
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Where runs are kept.")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Measure a model's ranges on its data; trains nothing.

    What would which format make of them?

    \b
    castiron health lstm-sentiment --batches 20
    castiron health runs/lstm-sentiment/first           with the weights of its best checkpoint
    """
    import tempfile

    from castiron.cli import console

    if _is_run(target, runs):
        from castiron.cli.usage import job_of
        from castiron.training.calibration import calibrator

        run = str(Path(target).parent.parent) if Path(target).is_file() else target
        which = "last" if Path(target).name.startswith("last") else "best"
        backend, job, loaded = job_of(run, runs, which, overrides or [])  # type: ignore[arg-type]
        with loaded.placing():
            measured = calibrator(backend).measure(job, batches)
    else:
        from castiron.training.backend import Job, load_backend
        from castiron.training.calibration import calibrator
        from castiron.training.config_file import load_config
        from castiron.training.run_directory import RunDirectory

        loaded = load_config(target, overrides or [])
        with tempfile.TemporaryDirectory(prefix="castiron-health-") as folder, loaded.placing():
            job = Job(config=loaded.config, recipe=loaded.recipe, run=RunDirectory(Path(folder)))
            measured = calibrator(load_backend(loaded.config.backend)).measure(job, batches)
    if json:
        from castiron.health.snapshot import rows_of

        console.as_json(
            {
                "steps": [row for s in measured.snapshots for row in rows_of(s)],
                "findings": [f.as_dict() for f in measured.findings],
            }
        )
        return
    _tell(measured)


def _tell(measured: Measured) -> None:
    from castiron.cli import console
    from castiron.health.fitting import would_do
    from castiron.health.statistics import WHAT_IF
    from castiron.training.calibration import what_if_rows
    from castiron.training.run_report import HEALTH, health_rows

    console.heading(f"Ranges on {len(measured.snapshots):,} batches; nothing was trained")
    console.table(HEALTH, health_rows(measured.snapshots))
    console.heading("What other formats would make of activations and their gradients (loss scaled)")
    console.table(("layer", *WHAT_IF), what_if_rows(measured.snapshots, WHAT_IF))
    for f in would_do(measured.snapshots):
        console.say(f.sentence())
    if measured.findings:
        console.findings(measured.findings)


def _is_run(target: str, runs: Path) -> bool:
    """Whether it is a run's folder, a checkpoint within one, or RECIPE/NAME of one."""
    from castiron.training.run_directory import CONFIG

    path = Path(target)
    if path.is_file():
        return (path.parent.parent / CONFIG).is_file() and path.parent.name == "checkpoints"
    return (path / CONFIG).is_file() or (runs / target / CONFIG).is_file()
