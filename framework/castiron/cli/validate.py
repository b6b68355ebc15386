"""`castiron validate`."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def validate(
    configs: Annotated[
        list[str], typer.Argument(metavar="CONFIG...", help="YAML files, packaged configs or recipes.")
    ],
    json: Annotated[
        bool, typer.Option("--json", help="For programs: a list with the findings of each.")
    ] = False,
) -> None:
    """Check configs; every mistake with its place.

    Nothing is trained.

    Keys, types and ranges; the recipe and its own settings; that data files are there; that this device can
    compute in the formats of the policy. Exit code 2 where anything is wrong.

    \b
    castiron validate my_config.yaml lstm_sentiment/sst2
    """
    from castiron.cli import console
    from castiron.diagnostics import CastironError, ConfigError
    from castiron.diagnostics.finding import Finding
    from castiron.training.checks import check

    results: list[dict[str, Any]] = []
    failed = 0
    for name in configs:
        found: tuple[Finding, ...]
        try:
            found = tuple(check(name))
        except CastironError as e:
            found = e.findings
        errors = [f for f in found if f.severity == "error"]
        failed += bool(errors)
        results.append({"config": name, "valid": not errors, "findings": [f.as_dict() for f in found]})
        if not json:
            mark, style = ("✗", "red") if errors else ("✓", "green")
            count = f"  {len(errors)} error{'s' if len(errors) > 1 else ''}" if errors else ""
            console.say(f"{mark} {name}{count}", style=style)
            console.findings(found)
    if json:
        console.as_json(results)
    if failed:
        raise typer.Exit(ConfigError.exit_code)
