"""`castiron rules`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer


def rules(
    code: Annotated[
        str | None, typer.Argument(metavar="[CODE]", help="A code (X801) or family (X8).")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Explain the codes that castiron reports.

    \b
    castiron rules X8
    castiron rules X801
    """
    from castiron.cli import console
    from castiron.diagnostics import FAMILIES, RULES, ConfigError, finding
    from castiron.training.suggestions import did_you_mean, near

    wanted = (code or "").upper()
    found = {c: r for c, r in sorted(RULES.items()) if c.startswith(wanted)}
    if not found:
        remedy = did_you_mean(near(wanted, RULES)) or f"Families: {', '.join(FAMILIES)}."
        raise ConfigError(
            finding("X820", "There is no such rule.", expected="a code such as X801", received=f"'{code}'",
                    remedy=remedy)
        )  # fmt: skip
    if json:
        console.as_json([asdict(r) for r in found.values()])
    elif len(found) == 1:
        only = next(iter(found.values()))
        console.say(f"{only.code}  {only.name}  ({only.severity})", style="bold")
        console.fields({"what": only.what, "why": only.why, "remedy": only.remedy})
        for title, example in (("Bad", only.bad), ("Good", only.good)):
            if example:
                console.heading(title)
                console.say("\n".join(f"    {line}" for line in example.splitlines()))
    else:
        rows = [(r.code, r.name, r.severity, r.what) for r in found.values()]
        console.table(("code", "name", "severity", "what"), rows)
