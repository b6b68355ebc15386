"""`castiron train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from castiron.cli.options import RUNS, Runs

if TYPE_CHECKING:
    from castiron.training import LoadedConfig, Outcome, RunDirectory


def train(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG|NAME",
            help="A YAML file, a packaged config (lstm_sentiment/sst2), or a recipe: a registered name or "
            "my_file.py:MyRecipe, with its default config. Not needed with --resume.",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings said otherwise: optimizer.lr=3e-4 (YAML)."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; the time by default.")] = None,
    runs: Runs = RUNS,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with this run: its folder, or RECIPE/NAME.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Start from these weights, of any origin; read as data only."),
    ] = None,
    on_mismatch: Annotated[
        str,
        typer.Option(
            metavar="refuse|cast",
            help="What to do with a checkpoint of other formats than the policy's: refuse it, or cast it and "
            "tell.",
        ),
    ] = "refuse",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show config, data, plan, steps and files; train nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show findings and errors only.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the whole plan and data report.")
    ] = False,
) -> None:
    """Train a recipe under its precision policy.

    \b
    castiron train lstm-sentiment
    castiron train lstm_sentiment/sst2 data.train=train.tsv precision=bf16-mixed
    castiron train my_recipe.py:MyRecipe trainer.max_epochs=5 --name first
    castiron train --resume lstm-sentiment/first
    """
    from castiron.cli.errors import wrong_arguments
    from castiron.cli.reporter import TerminalReporter
    from castiron.cli.usage import chosen
    from castiron.training.config_file import load_config
    from castiron.training.launch import load_run
    from castiron.training.launch import resume as resume_run
    from castiron.training.launch import train as train_run
    from castiron.training.run_directory import RunDirectory

    given = list(overrides or [])
    if config is not None and _is_override(config):
        given = [config, *given]
        config = None
    if quiet and verbose:
        raise typer.Exit(wrong_arguments("--quiet and --verbose exclude each other.", "Give one of the two."))
    verbosity: Literal["quiet", "normal", "verbose"] = (
        "quiet" if quiet else "verbose" if verbose else "normal"
    )
    mismatch = chosen("--on-mismatch", on_mismatch, ("refuse", "cast"))
    if resume is not None:
        if name is not None:
            raise typer.Exit(
                wrong_arguments("--resume goes on under the run's own name.", "Leave out --name.")
            )
        run = RunDirectory.open(resume, runs)
        follows = _follows(load_run(run))
        reporter = TerminalReporter("quiet" if follows else verbosity)
        reporter.say(f"Resuming {run.path}")
        if weights is not None:
            raise typer.Exit(
                wrong_arguments("--resume has the run's own weights.", "Leave out --weights, or --resume.")
            )
        run, outcome = resume_run(run, given, source=config, reporter=reporter, on_mismatch=mismatch)
        raise typer.Exit(outcome.exit_code if follows else _close(run, outcome, verbosity))
    if config is None:
        raise typer.Exit(
            wrong_arguments("CONFIG is missing.", "Name a config or a recipe, such as lstm-sentiment.")
        )
    loaded = load_config(config, given)
    if dry_run:
        _dry_run(loaded, runs, name, verbosity)
        return
    follows = _follows(loaded)
    reporter = TerminalReporter("quiet" if follows else verbosity)
    reporter.say(_headline(loaded))
    run, outcome = train_run(
        loaded, runs=runs, name=name, reporter=reporter, weights=weights, on_mismatch=mismatch
    )
    raise typer.Exit(outcome.exit_code if follows else _close(run, outcome, verbosity))


def _is_override(text: str) -> bool:
    return "=" in text and not Path(text).exists()


def _follows(loaded: LoadedConfig) -> bool:
    """Whether another process of this training speaks: of several, the first."""
    from castiron.training.ranks import rank_here

    here = rank_here(backend=loaded.config.backend)
    return here is not None and here.rank > 0


def _headline(loaded: LoadedConfig) -> str:
    config = loaded.config
    return (
        f"Training {loaded.recipe.name} ({config.backend}) under {config.precision.label}, seed {config.seed}"
    )


def _close(run: RunDirectory, outcome: Outcome, verbosity: str) -> int:
    """What came of it, and what to do next."""
    from castiron.cli import console
    from castiron.cli.errors import Settings
    from castiron.cli.tables import metrics_table

    if outcome.incident is not None:
        from castiron.training.incident_text import print_incident

        others = [f for f in outcome.findings if f.code != outcome.incident.code]
        console.findings(others)
        print_incident(outcome.incident, console.rich_console(), outcome.incident_folder)
    elif outcome.findings:
        console.findings(outcome.findings)
    where = run.name if run.path.parent.parent == Path("runs") else str(run.path)
    if outcome.status in ("stopped", "interrupted"):
        why = f": {outcome.message}" if outcome.message else "."
        Settings.interrupt_told = True
        console.note(f"{outcome.status.capitalize()} after {outcome.steps:,} steps{why}")
        console.note(f"Go on with it by: castiron train --resume {where}")
    elif outcome.status == "failed":
        if outcome.incident is not None:
            console.note(f"\nTraining stopped after {outcome.steps:,} steps; the bad one was not applied.")
            console.note(
                f"Go on with it by: castiron train --resume {where} guard.response=hold (or mend the cause)"
            )
        else:
            console.note(f"Training failed after {outcome.steps:,} steps. {outcome.message}".rstrip())
            console.note(f"What is left of it: {run.path}")
    elif verbosity != "quiet":
        if outcome.message:
            console.say(outcome.message)
        if outcome.metrics:
            metrics_table(outcome.metrics)
        speed = f", {outcome.items_per_s:,.0f} items/s" if outcome.items_per_s else ""
        held = f", {outcome.held_steps:,} held" if outcome.held_steps else ""
        console.say(f"{outcome.steps:,} steps in {outcome.duration_s:.1f} s{speed}{held}")
        console.say(f"Run: {run.path}")
        console.say(f"Next: castiron evaluate {where} · castiron board")
    else:
        console.say(str(run.path))
    return outcome.exit_code


def _dry_run(loaded: LoadedConfig, runs: Path, name: str | None, verbosity: str) -> None:
    import tempfile

    from castiron.cli import console
    from castiron.cli.tables import data_report, plan_table
    from castiron.training import run_directory as files
    from castiron.training.launch import preview
    from castiron.training.run_directory import RunDirectory
    from castiron.training.yaml_writer import as_yaml

    with tempfile.TemporaryDirectory(prefix="castiron-dry-run-") as folder:
        found = preview(loaded, RunDirectory(Path(folder)))
    console.heading("Config")
    console.say(as_yaml(loaded.config.resolved()).rstrip())
    for report in found.data.values():
        data_report(report)
    console.heading("Plan")
    console.say(found.plan.brief())
    plan_table(found.plan)
    if found.findings:
        console.findings(found.findings)
    console.heading("Steps")
    trainer = loaded.config.trainer
    epochs = f"at most {trainer.max_epochs} epochs of " if trainer.max_epochs else "epochs of "
    console.say(f"{found.steps:,} steps; {epochs}{found.steps_per_epoch:,}")
    console.say(f"{found.parameters:,} parameters")
    console.heading("Files")
    target = runs / loaded.recipe.name / (name or "<time>")
    written = (
        files.CONFIG,
        files.ENVIRONMENT,
        files.PLAN,
        files.DATA,
        files.METRICS,
        "events.out.tfevents.*",
        f"{files.ASSETS}/",
        f"{files.CHECKPOINTS}/",
        files.SUMMARY,
    )
    for file in written:
        console.say(str(target / file) + ("/" if file.endswith("/") else ""))
    console.say()
    console.say("Nothing was trained, and nothing is left on disk.")
