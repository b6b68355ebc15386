"""`castiron audit` and `castiron verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from castiron.training.audit import AuditReport

Form = Literal["text", "json", "sarif", "html"]


def audit(
    target: Annotated[str, typer.Argument(metavar="CONFIG|RECIPE|MODULE:FUNCTION", help="What to audit.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", help="Of MODULE:FUNCTION: dtype[shape], once for each argument of the model."
        ),
    ] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", help="Of MODULE:FUNCTION: preset or short string [float32].")
    ] = None,
    form: Annotated[Form, typer.Option("--format", help="How to write the report.")] = "text",
    phase: Annotated[bool, typer.Option("--phase", help="Formats of each phase by itself.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Also notes, and what was waived.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to a file, not to the terminal.")
    ] = None,
) -> None:
    """Hold every operation against the policy; trains nothing.

    Exit code 1 where something of severity error was found.

    \b
    castiron audit lstm-sentiment precision=bf16-mixed
    castiron audit my_module:build_model --input "float32[8,16,3]" --policy bf16-mixed
    castiron audit my_config.yaml --format sarif -o audit.sarif
    """
    from castiron.cli import console
    from castiron.cli.errors import wrong_arguments

    given = list(overrides or [])
    if _is_function(target):
        if not inputs:
            raise typer.Exit(
                wrong_arguments("A model by itself needs example inputs.", 'Say --input "float32[8,16,3]".')
            )
        report = _function(target, inputs, policy)
        file = None
    else:
        report, file = _config(target, [*given, *([f"precision={policy}"] if policy else [])])
    text = _write(report, form, phase=phase, everything=everything, file=file, title=f"Audit of {target}")
    if output is not None:
        output.write_text(text, encoding="utf-8")
        console.say(f"Audit {report.headline()}")
    else:
        console.say(text.rstrip("\n"))
    raise typer.Exit(0 if report.ok else 1)


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or an audit.json.")],
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Read a run's certificate (audit.json) again.

    Exit code 0 where nothing of severity error is in it, else 1.

    \b
    castiron verify runs/lstm-sentiment/first
    """
    from castiron.cli import console
    from castiron.training.auditing import verify as read

    report = read(run)
    if json:
        console.as_json({"ok": report.ok, "headline": report.headline(), "policy": report.policy})
    else:
        console.say(report.headline(), style="green" if report.ok else "bold red")
        if report.errors:
            console.findings(report.errors)
    raise typer.Exit(0 if report.ok else 1)


def _is_function(target: str) -> bool:
    """Whether it is `module:function` of a model, and not a recipe's class."""
    module, _, name = target.partition(":")
    if not name or module.endswith(".py"):
        return False
    from castiron.training.auditing import load_function

    found = load_function(target)
    return not any(cls.__name__ == "Recipe" for cls in getattr(found, "__mro__", ()))


def _function(target: str, inputs: list[str], policy: str | None) -> AuditReport:
    from castiron.cli.policy import parse
    from castiron.training.auditing import audit_function, load_function

    return audit_function(load_function(target), inputs, parse(policy or "float32"))


def _config(target: str, overrides: list[str]) -> tuple[AuditReport, str | None]:
    import tempfile

    from castiron.training.auditing import audit_config
    from castiron.training.config_file import load_config, resolve_source
    from castiron.training.run_directory import RunDirectory

    loaded = load_config(target, overrides)
    with tempfile.TemporaryDirectory(prefix="castiron-audit-") as folder:
        report = audit_config(loaded, RunDirectory(Path(folder)))
    file = resolve_source(target).file
    return report, str(file) if file else None


def _write(
    report: AuditReport, form: Form, *, phase: bool, everything: bool, file: str | None, title: str
) -> str:
    if form == "json":
        return report.to_json()
    if form == "sarif":
        import castiron
        from castiron.diagnostics.sarif import as_sarif

        return as_sarif(
            report.findings, waived=report.waived, version=castiron.__version__, default_file=file
        )
    if form == "html":
        from castiron.diagnostics.html import report_page

        return report_page(title, report.headline(), report.findings, report.share("flops"))
    return report.as_text(phases=phase, all=everything)
