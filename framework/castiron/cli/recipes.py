"""`castiron recipes list|show|copy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Installed recipes; a copy to change.",
    no_args_is_help=True, rich_markup_mode=None,
)  # fmt: skip


@app.command("list")
def list_recipes(json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """List the installed recipes. Nothing of them is imported."""
    from castiron.cli import console
    from castiron.training.configs import packaged_configs
    from castiron.training.registry import headline, registered

    configs = packaged_configs()
    records = []
    for name, found in registered().items():
        folder = name.replace("-", "_")
        own = [c for c in configs if c.startswith(f"{folder}/")]
        records.append(
            {
                "name": name,
                "what": headline(found),
                "target": found.target,
                "package": found.package,
                "configs": own,
            }
        )
    if json:
        console.as_json(records)
        return
    rows = [(r["name"], r["what"], ", ".join(r["configs"]), r["package"]) for r in records]
    console.table(("recipe", "what it is", "configs", "from"), rows)


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A registered name, or my_file.py:MyRecipe.")],
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show what a recipe is, and its model's settings."""
    import inspect

    from castiron.cli import console
    from castiron.training.config_file import default_config
    from castiron.training.registry import find_recipe, recipe_file

    recipe = find_recipe(name)
    settings = setting_rows(recipe.Config)
    default = default_config(recipe)
    record: dict[str, Any] = {
        "name": recipe.name,
        "what": inspect.getdoc(recipe) or "",
        "class": f"{recipe.__module__}:{recipe.__qualname__}",
        "file": str(recipe_file(recipe)),
        "backends": list(recipe.backends),
        "default_config": str(default) if default else None,
        "model": [dict(zip(("key", "type", "default", "help"), row, strict=True)) for row in settings],
    }
    if json:
        console.as_json(record)
        return
    console.say(recipe.name, style="bold")
    console.say(record["what"])
    console.say()
    console.fields({k: record[k] for k in ("class", "file", "default_config")})
    console.fields({"backends": ", ".join(recipe.backends)})
    console.heading("Settings of the model")
    console.table(("key", "type", "default", "what it is"), settings)


@app.command("copy")
def copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A registered recipe.")],
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that is not there yet, or is empty.")
    ],
) -> None:
    """Copy an installed recipe into a project of your own.

    It trains as it is; configs, a README and a test come with it.

    \b
    castiron recipes copy lstm-sentiment my-sentiment
    """
    from castiron.cli import console
    from castiron.cli.project import copy_recipe

    made = copy_recipe(name, folder)
    for file in made.files:
        console.say(str(file))
    console.say(f"Next: castiron train {made.config} --dry-run")


def setting_rows(model: Any) -> list[tuple[str, str, str, str]]:
    """Key, type, default and help of each field of a model."""
    import json

    rows = []
    schema = model.model_json_schema(by_alias=True)
    for name, field in model.model_fields.items():
        shown = schema["properties"].get(field.alias or name, {})
        default = "required" if field.is_required() else json.dumps(shown.get("default"))
        rows.append(
            (field.alias or name, _type(shown, schema), default, " ".join((field.description or "").split()))
        )
    return rows


def _type(shown: dict[str, Any], schema: dict[str, Any]) -> str:
    if "$ref" in shown:
        shown = schema["$defs"][shown["$ref"].rsplit("/", 1)[1]]
    if "anyOf" in shown:
        return " or ".join(_type(option, schema) for option in shown["anyOf"])
    if "enum" in shown:
        return " | ".join(str(v) for v in shown["enum"])
    if "const" in shown:
        return str(shown["const"])
    words = {"integer": "whole number", "string": "text", "boolean": "true | false", "array": "list",
             "object": "mapping"}  # fmt: skip
    kind = words.get(shown.get("type", "any"), shown.get("type", "any"))
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    limits = [f"{sign} {shown[key]:g}" for key, sign in signs.items() if key in shown]
    return " ".join([kind, *limits])
