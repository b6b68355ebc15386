"""`castiron policy list|show|schema`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from castiron.policy import PrecisionPolicy

app = typer.Typer(
    help="Precision policies and presets.",
    no_args_is_help=True, rich_markup_mode=None,
)  # fmt: skip


@app.command("list")
def list_presets(json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """List the presets, and what others call them."""
    from castiron.cli import console
    from castiron.policy import ALIASES, PRESETS, PrecisionPolicy

    names = {preset: [a for a, ours in ALIASES.items() if ours == preset] for preset in PRESETS}
    if json:
        records = [
            {"name": n, "what": what, "aliases": names[n], "policy": str(PrecisionPolicy.preset(n))}
            for n, (what, _) in PRESETS.items()
        ]
        console.as_json(records)
        return
    rows = [(name, what, ", ".join(names[name])) for name, (what, _) in PRESETS.items()]
    console.table(("preset", "what it is", "also called"), rows)


@app.command("show")
def show(
    policy: Annotated[
        str, typer.Argument(metavar="PRESET|STRING", help="bf16-mixed, or p=float32,c=bfloat16,o=float32")
    ],
    json: Annotated[bool, typer.Option("--json", help="For programs: every field.")] = False,
) -> None:
    """Show all that a policy declares.

    \b
    castiron policy show bf16-mixed
    castiron policy show p=bfloat16,updates.master=float32
    """
    from castiron.cli import console
    from castiron.policy import ROLES

    parsed = parse(policy)
    if json:
        console.as_json(
            {
                "string": str(parsed),
                "hash": parsed.hash(),
                "policy": parsed.model_dump(mode="json", by_alias=True),
            }
        )
        return
    console.say(parsed.label, style="bold")
    console.fields({"string": str(parsed), "hash": parsed.hash()})
    console.say()
    model = type(parsed).model_fields
    console.table(
        ("role", "format", "what it is"),
        [(role, getattr(parsed, role), model[role].description) for role in ROLES],
    )
    declared = parsed.canonical()
    for section in [name for name in declared if name not in ROLES]:
        value = declared[section]
        console.heading(section)
        if not value:
            console.say("none")
            continue
        for name, line in _lines(value):
            console.say(f"  {name}: {line}")


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of a policy, for editors."""
    from castiron.cli import console
    from castiron.policy import PrecisionPolicy

    console.as_json(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", **PrecisionPolicy.model_json_schema()}
    )


def parse(text: str) -> PrecisionPolicy:
    """The policy of a preset's name or a short string.

    Raises:
        ConfigError: neither; with near misses.
    """
    from pydantic import ValidationError

    from castiron.diagnostics import ConfigError, Place
    from castiron.policy import PrecisionPolicy
    from castiron.training.config import RunConfig
    from castiron.training.config_errors import findings_of
    from castiron.training.yaml_reader import KeyPath, dotted

    def locate(path: KeyPath, of_key: bool) -> Place:
        return Place(file=f"argument '{text}'", key=dotted(path[1:]) or None)

    try:
        return PrecisionPolicy.parse(text)
    except ValidationError:
        pass
    try:
        # Once more as the `precision` of a config, so that locations are those of a config.
        RunConfig.model_validate({"recipe": "-", "precision": text})
    except ValidationError as e:
        raise ConfigError(findings_of(e, RunConfig, {"precision": text}, locate)) from None
    raise AssertionError("a policy that is refused alone is refused in a config")


def _lines(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for name, inner in value.items():
        if isinstance(inner, dict) and inner:
            found += _lines(inner, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", _plain(inner)))
    return found


def _plain(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(str(v) for v in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"
