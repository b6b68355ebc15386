"""Sphinx extension: writes the reference pages from the source they describe, at every build.

The policy and the config from their models, the rules from the catalogue, the presets and number formats from
their tables, the commands from the command line itself, the API from its source (`castiron_api`). Nothing of
it is committed, so nothing can drift.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from castiron_api import api
from pydantic import BaseModel, TypeAdapter

from castiron.cli.main import app as commands
from castiron.diagnostics import FAMILIES, RULES, Rule
from castiron.formats import FORMATS, NumberFormat
from castiron.policy import ALIASES, PRESETS, PrecisionPolicy
from castiron.policy import sections as policy_sections
from castiron.training import config as run_config

if TYPE_CHECKING:
    from sphinx.application import Sphinx

REFERENCE, OF_RULES = "reference/generated", "rules"
"""Folders below docs/ that hold nothing but what is generated."""

POLICY = (
    PrecisionPolicy,
    policy_sections.LayerRule,
    policy_sections.Islands,
    policy_sections.MatmulSection,
    policy_sections.NoScaling,
    policy_sections.StaticScaling,
    policy_sections.DynamicScaling,
    policy_sections.UpdateSection,
    policy_sections.CastSection,
    policy_sections.GuardSection,
    policy_sections.Budget,
    policy_sections.Rollback,
    policy_sections.LowerLearningRate,
    policy_sections.Promote,
    policy_sections.HealthSection,
    policy_sections.EnforceSection,
)
CONFIG = (
    run_config.RunConfig,
    run_config.DataConfig,
    run_config.HoldOut,
    run_config.ReadOptions,
    run_config.OptimizerConfig,
    run_config.ScheduleConfig,
    run_config.TrainerConfig,
    run_config.EarlyStopping,
)


def pages() -> dict[str, str]:
    """Path below docs/ → Markdown."""
    made = {
        "policy": fields("Policy fields", POLICY),
        "config": fields("Config fields", CONFIG),
        "presets": presets(),
        "formats": formats(),
        "commands": command_line(),
    }
    made |= {f"api/{name}": text for name, text in api().items()}
    rules = {"index": rules_index(), **{code: rule_page(rule) for code, rule in RULES.items()}}
    return {f"{REFERENCE}/{name}.md": text for name, text in made.items()} | {
        f"{OF_RULES}/{name}.md": text for name, text in rules.items()
    }


def write(folder: Path) -> None:
    """Write the pages that changed, and remove those that are no more."""
    wanted = pages()
    for name, text in wanted.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for own in (REFERENCE, OF_RULES):
        for path in (folder / own).rglob("*.md"):
            if path.relative_to(folder).as_posix() not in wanted:
                path.unlink()


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", lambda app: write(Path(app.srcdir)))
    return {"parallel_read_safe": True}


# --- models --------------------------------------------------------------------------------------------


def fields(title: str, models: tuple[type[BaseModel], ...]) -> str:
    """A section per model, a row per field: key, type, default, and the string under the field."""
    parts = [f"# {title}"]
    for model in models:
        parts += [
            "",
            f"## {model.__name__}",
            "",
            unwrap(model.__doc__ or "").split("Example:")[0].strip(),
            "",
        ]
        parts += ["| key | type | default | |", "|---|---|---|---|"]
        schema = own_schema(model)
        for name, field in model.model_fields.items():
            key = field.alias or name
            default = (
                "" if field.is_required() else shown_default(field.get_default(call_default_factory=True))
            )
            kind = kind_of(schema["properties"][key])
            parts.append(f"| `{key}` | {kind} | {default} | {cell(field.description or '')} |")
    return "\n".join(parts) + "\n"


def own_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of a model's own mapping (a policy's schema also admits names and strings)."""
    schema = model.model_json_schema()
    while "properties" not in schema:
        schema = next(s for s in schema["anyOf"] if "properties" in s)
    return schema


def kind_of(schema: Mapping[str, Any]) -> str:
    """The type of a field in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        page = "policy.md" if name in {m.__name__ for m in POLICY} else "config.md"
        return f"[{name}]({page}#{name.lower()})"
    if "anyOf" in schema or "oneOf" in schema:
        ways = [kind_of(s) for s in schema.get("anyOf") or schema["oneOf"]]
        return " or ".join(dict.fromkeys(w for w in ways if w))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{v}`" for v in words(schema))
    match schema.get("type"):
        case "object":
            inner = schema.get("additionalProperties")
            return f"mapping to {kind_of(inner)}" if isinstance(inner, dict) and inner else "mapping"
        case "array":
            inner = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
            return f"list of {kind_of(inner) or 'anything'}"
        case "integer" | "number" as name:
            return ("whole number" if name == "integer" else "number") + limits(schema)
        case "boolean":
            return "true, false"
        case "string":
            return "text"
        case "null":
            return "null"
    return "anything"


def words(schema: Mapping[str, Any]) -> list[Any]:
    """What an enumeration admits; of the names of formats only our own."""
    values = list(schema.get("enum") or [schema["const"]])
    ours = [v for v in values if v in FORMATS]
    return ours if ours and {"bf16", "fp32", "fp64"} & set(values) else values


def limits(schema: Mapping[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return f" {' and '.join(found)}" if found else ""


def shown_default(value: Any) -> str:
    if isinstance(value, PrecisionPolicy):
        return f"`{value.label}`"
    if isinstance(value, BaseModel):
        return "as below"
    text = json.dumps(TypeAdapter(Any).dump_python(value, mode="json"), ensure_ascii=False)
    return f"`{text.strip(chr(34))}`"


# --- tables --------------------------------------------------------------------------------------------


def presets() -> str:
    lines = [
        "# Presets",
        "",
        "A preset is a policy with a name. Other names of the same, from Lightning, Keras and habit, are",
        "accepted and shown as ours.",
        "",
        "| preset | what it is | other names | in short |",
        "|---|---|---|---|",
    ]
    for name, (what, _) in PRESETS.items():
        others = ", ".join(f"`{alias}`" for alias, ours in ALIASES.items() if ours == name)
        lines.append(f"| `{name}` | {cell(what)} | {others} | `{PrecisionPolicy.preset(name)}` |")
    return "\n".join(lines) + "\n"


def formats() -> str:
    floats = [f for f in FORMATS.values() if f.is_float]
    others = [f for f in FORMATS.values() if not f.is_float]
    lines = [
        "# Number formats",
        "",
        "Spacing is the distance from 1 to the next larger number. The last column is the largest n such",
        "that every integer from 0 to n is kept.",
        "",
        "| format | bits | exponent, fraction | largest | smallest normal | subnormal | spacing | integers |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| `{f.name}` | {f.bits} | {f.exponent_bits}, {f.fraction_bits} | {figure(f.max)} "
        f"| {figure(f.smallest_normal)} | {figure(f.smallest_subnormal)} | {figure(f.spacing)} "
        f"| {f.max_exact_int:,} |"
        for f in floats
    ]
    lines += ["", "| format | bits | from | to |", "|---|---:|---:|---:|"]
    lines += [f"| `{f.name}` | {f.bits} | {int(f.min):,} | {int(f.max):,} |" for f in others]
    lines += ["", "## Names", "", "| format | NumPy | torch | TensorFlow |", "|---|---|---|---|"]
    lines += [f"| `{f.name}` | {' | '.join(f'`{n}`' for n in names(f))} |" for f in FORMATS.values()]
    return "\n".join(lines) + "\n"


def names(f: NumberFormat) -> tuple[str, ...]:
    return f.numpy_name, f"torch.{f.torch_name}", f"tf.{f.tensorflow_name}"


def figure(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


# --- rules ---------------------------------------------------------------------------------------------


def rules_index() -> str:
    """All codes by family, with a page each."""
    lines = [
        "# Rules",
        "",
        "Every finding has one of these codes; `castiron rules CODE` shows the same text.",
    ]
    for family, title in FAMILIES.items():
        of = [rule for code, rule in RULES.items() if code.startswith(family)]
        if of:
            lines += ["", f"## {family}xx: {title}", "", "| code | name | severity | |", "|---|---|---|---|"]
            lines += [f"| [{r.code}]({r.code}.md) | {r.name} | {r.severity} | {cell(r.what)} |" for r in of]
    lines += ["", "```{toctree}", ":hidden:", "", *RULES, "```"]
    return "\n".join(lines) + "\n"


def rule_page(rule: Rule) -> str:
    parts = [
        f"# {rule.code} {rule.name}",
        "",
        f"Severity: {rule.severity}. {rule.what}",
        "",
        f"**Why it matters.** {rule.why}",
        "",
        f"**What to do.** {rule.remedy}",
    ]
    for title, example in (("Example", rule.bad), ("Instead", rule.good)):
        if example:
            parts += ["", f"**{title}**", "", "```text", example, "```"]
    return "\n".join(parts) + "\n"


# --- commands ------------------------------------------------------------------------------------------


def command_line() -> str:
    """What `--help` of every command says."""
    lines = ["# Commands"]
    root = typer.main.get_command(commands)
    for path, command in walk(root, "castiron"):
        context = command.make_context(path, [], resilient_parsing=True, max_content_width=100)
        lines += ["", f"## {path}", "", "```text", command.get_help(context).rstrip(), "```"]
    return "\n".join(lines) + "\n"


def walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every command, with what one types to call it; groups before what is in them."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, f"{path} {name}")


# --- pieces --------------------------------------------------------------------------------------------


def unwrap(text: str) -> str:
    """A docstring as paragraphs of one line each."""
    paragraphs = "\n".join(line.strip() for line in text.strip().splitlines()).split("\n\n")
    return "\n\n".join(" ".join(p.split("\n")) for p in paragraphs)


def cell(text: str) -> str:
    """Text within a table."""
    return " ".join(text.split()).replace("|", "\\|")
