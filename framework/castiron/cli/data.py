"""`castiron data check|fetch|describe`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Check, describe and download data.",
    no_args_is_help=True, rich_markup_mode=None,
)  # fmt: skip


@app.command("check")
def check(
    config: Annotated[str, typer.Argument(metavar="CONFIG|NAME", help="As for `castiron train`.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings said otherwise: data.train=my.csv"),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="For programs: the whole report of each split.")
    ] = False,
) -> None:
    """Hold files against the contract, and report every cast.

    Reads every file and casts every value, without a model.

    \b
    castiron data check lstm_sentiment/sst2 data.train=train.tsv data.columns.label=1
    """
    import tempfile

    from castiron.cli import console
    from castiron.cli.tables import data_report
    from castiron.diagnostics import DataError
    from castiron.training.config_file import load_config
    from castiron.training.splits import check_splits, keyed

    loaded = load_config(config, overrides or [])
    with tempfile.TemporaryDirectory(prefix="castiron-data-") as folder, loaded.placing():
        reports = check_splits(loaded.config, loaded.recipe(loaded.config), Path(folder))
    if json:
        console.as_json({split: report.model_dump(mode="json") for split, report in reports.items()})
    else:
        for split, report in reports.items():
            data_report(report)
            console.findings(loaded.placed(keyed(report.as_findings(), f"data.{split}")))
    if not all(report.is_sound for report in reports.values()):
        raise typer.Exit(DataError.exit_code)


@app.command("describe")
def describe(
    config: Annotated[str, typer.Argument(metavar="CONFIG|NAME", help="As for `castiron train`.")],
    json: Annotated[bool, typer.Option("--json", help="For programs: the schema.")] = False,
) -> None:
    """Show the fields of a contract, and their columns."""
    from castiron.cli import console
    from castiron.training.config_file import load_config

    loaded = load_config(config)
    schema = loaded.recipe(loaded.config).schema()
    if json:
        console.as_json(schema.model_dump(mode="json"))
        return
    rows = []
    for field in schema.fields:
        column = loaded.config.data.columns.get(field.name) or field.column or field.name
        low = "" if field.minimum is None else f">= {field.minimum:g}"
        high = "" if field.maximum is None else f"<= {field.maximum:g}"
        categories = ", ".join(field.categories or ())
        rows.append(
            (
                field.name,
                field.role,
                field.dtype or "text",
                " or ".join(map(str, column)) if isinstance(column, tuple) else column,
                "yes" if field.required else "no",
                field.missing.treatment,
                field.bad,
                " ".join(filter(None, (low, high, categories))),
            )
        )
    console.table(("field", "role", "format", "column", "required", "missing", "bad cells", "range"), rows)


@app.command("fetch")
def fetch(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A data set, such as sst2; none: list.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--cache", metavar="DIR", help="Folder to keep it in; the user's cache by default."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Download a public data set under a pinned SHA-256."""
    from castiron.cli import console
    from castiron.data.catalogue import CATALOGUE
    from castiron.data.fetch import fetch as fetch_data

    if name is None:
        if json:
            console.as_json([asdict(remote) for remote in CATALOGUE.values()])
        else:
            rows = [(n, remote.title, f"{remote.bytes / 1e6:.1f} MB") for n, remote in CATALOGUE.items()]
            console.table(("data set", "what it is", "size"), rows, right=(2,))
        return
    fetched = fetch_data(name, cache=folder)
    if json:
        console.as_json({split: str(path) for split, path in fetched.files.items()})
        return
    remote = CATALOGUE[name]
    console.fields({split: str(path) for split, path in fetched.files.items()})
    console.note(f"Licence: {remote.licence}")
    console.note(remote.note)
    console.say(f"Next: castiron train CONFIG {' '.join(fetched.arguments)}")
