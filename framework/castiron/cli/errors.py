"""What becomes of an error: the user's as findings and an exit code, a bug as a traceback."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING

from castiron.cli import console

if TYPE_CHECKING:
    from castiron.diagnostics import CastironError

ISSUES = "https://github.com/castiron-ml/castiron/issues"


class Settings:
    """What holds for the whole call; set from the arguments before a command runs."""

    traceback: bool = False
    json: bool = False
    """The command was asked for JSON, and its errors are JSON too."""
    interrupt_told: bool = False
    """The command has said what an interrupt means for it."""


def user_error(error: CastironError) -> int:
    """Show a mistake of the user, unless another rank of a training does; its exit code."""
    from castiron.training.ranks import is_told

    if Settings.traceback:
        traceback.print_exception(error)
    if is_told(error):
        return error.exit_code
    if Settings.json:
        console.as_json({"findings": [f.as_dict() for f in error.findings]})
    else:
        console.findings(error.findings)
    return error.exit_code


def wrong_arguments(message: str, remedy: str) -> int:
    """Show what is wrong with the command line itself; exit code 2."""
    from castiron.diagnostics import ConfigError, finding

    return user_error(ConfigError(finding("X820", message, remedy=remedy)))


def bug(error: BaseException) -> int:
    """Show an error that no user should see; exit code 1."""
    sys.stdout.flush()
    traceback.print_exception(error)
    console.note(
        "\nThis is a bug, in castiron or in the recipe's own code (see the last lines above). If it is "
        "castiron's, please report it with the text above and the output of `castiron doctor`.",
        style="bold red",
    )
    return 1
