"""`castiron configs list|copy|schema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="The configs that ship with castiron.", no_args_is_help=True, rich_markup_mode=None
)  # fmt: skip


@app.command("list")
def list_configs(json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """List the packaged configs."""
    from castiron.cli import console
    from castiron.training.configs import headline, packaged_configs

    found = packaged_configs()
    if json:
        console.as_json([{"name": n, "file": str(p), "what": headline(p)} for n, p in found.items()])
        return
    console.table(("config", "what it is"), [(name, headline(path)) for name, path in found.items()])


@app.command("copy")
def copy(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A packaged config, such as lstm_sentiment/sst2.")
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; nothing is overwritten.")],
) -> None:
    """Copy a packaged config, to change it.

    \b
    castiron configs copy lstm_sentiment/default my_config.yaml
    """
    from castiron.cli import console
    from castiron.cli.copying import write_new
    from castiron.diagnostics import ConfigError, finding
    from castiron.training.configs import packaged_configs
    from castiron.training.suggestions import did_you_mean, near

    found = packaged_configs()
    if name not in found:
        remedy = did_you_mean(near(name, found)) or f"There are: {', '.join(found)}."
        raise ConfigError(
            finding("X808", "There is no such packaged config.", received=f"'{name}'", remedy=remedy)
        )
    target = file / f"{Path(name).name}.yaml" if file.is_dir() else file
    write_new(target, found[name].read_text(encoding="utf-8"))
    console.say(f"{target}")
    console.say(f"Next: castiron train {target}")


@app.command("schema")
def schema(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="With the settings of this recipe's model.")
    ] = None,
) -> None:
    """Print the JSON Schema of a config file, for editors."""
    from castiron.cli import console
    from castiron.training.config_file import json_schema
    from castiron.training.registry import find_recipe

    console.as_json(json_schema(find_recipe(recipe) if recipe else None))
