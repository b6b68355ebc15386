"""`castiron`: the commands, and what becomes of their errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from castiron.cli import (
    audit,
    board,
    compare,
    configs,
    convert,
    data,
    doctor,
    evaluate,
    health,
    inspect,
    policy,
    predict,
    recipes,
    replay,
    report,
    rules,
    suggest,
    train,
    validate,
)
from castiron.cli.errors import Settings, bug, user_error, wrong_arguments

HELP = """Train models under an enforced precision policy: the formats you declare are the formats that run.

\b
castiron train lstm-sentiment                      train on the recipe's own data
castiron train CONFIG.yaml optimizer.lr=3e-4       train as a file says, but for this
castiron doctor                                    what this machine can run
"""

app = typer.Typer(
    name="castiron",
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(value: bool) -> None:
    if value:
        import castiron

        typer.echo(f"castiron {castiron.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    show_traceback: Annotated[
        bool, typer.Option("--traceback", help="Show the traceback of every error, also of mistakes.")
    ] = False,
) -> None:
    pass


for name, command in (
    ("train", train.train),
    ("evaluate", evaluate.evaluate),
    ("predict", predict.predict),
    ("replay", replay.replay),
    ("report", report.report),
    ("health", health.health),
    ("suggest", suggest.suggest),
    ("compare", compare.compare),
    ("validate", validate.validate),
    ("audit", audit.audit),
    ("verify", audit.verify),
    ("doctor", doctor.doctor),
    ("inspect", inspect.inspect),
    ("export", inspect.export),
    ("convert", convert.convert),
    ("rules", rules.rules),
    ("board", board.board),
):
    app.command(name)(command)
for name, group in (
    ("data", data.app),
    ("policy", policy.app),
    ("recipes", recipes.app),
    ("configs", configs.app),
):
    app.add_typer(group, name=name)


def run(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code.

    0 well; 1 a check failed, or training stopped on an incident; 2 the user's mistake; 75 stopped early, can
    be resumed; 130 interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    # --traceback is understood anywhere.
    Settings.traceback = "--traceback" in given
    Settings.json = "--json" in given
    Settings.interrupt_told = False
    given = [a for a in given if a != "--traceback"]
    try:
        code = app(given, prog_name="castiron", standalone_mode=False)
        sys.stdout.flush()
        return _closed(int(code or 0))
    except typer.Exit as e:
        return _closed(e.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _closed(130)
    except BrokenPipeError:
        # Whoever read our output has read enough (`castiron rules | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as e:
        if isinstance(e, _usage_error()):
            return _usage(e)
        from castiron.diagnostics import CastironError

        return user_error(e) if isinstance(e, CastironError) else bug(e)


def _closed(code: int) -> int:
    if code == 130 and not Settings.interrupt_told:
        typer.echo("Interrupted.", err=True)
    return code


def _usage_error() -> type[Exception]:
    """click's base class of errors in arguments, wherever this typer keeps its click."""
    return next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def _usage(error: Exception) -> int:
    message = str(getattr(error, "format_message", lambda: error)())
    if type(error).__name__ == "NoArgsIsHelpError":  # a group without a command shows its help
        typer.echo(message)
        return 2
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "castiron"
    option = getattr(error, "option_name", None)
    if isinstance(option, str) and "." in option:
        return wrong_arguments(message, f"Overrides are written without dashes: {option.lstrip('-')}=VALUE.")
    return wrong_arguments(message, f"See {path} --help.")
