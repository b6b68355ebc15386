"""Writing to the terminal, in one place: colours and tables there, plain lines elsewhere, JSON for programs.

Results go to the standard output, notes and errors to the standard error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from castiron.diagnostics import Finding


def is_terminal(stream: IO[str] | None = None) -> bool:
    """Whether a person is looking: a terminal that understands escape codes."""
    if os.environ.get("FORCE_COLOR"):
        return True
    return bool((stream or sys.stdout).isatty()) and os.environ.get("TERM") != "dumb"


def rich_console(stream: IO[str] | None = None) -> Console:
    """rich's console for a stream (the standard output by default); without escape codes off a terminal."""
    from rich.console import Console

    stream = stream or sys.stdout
    terminal = is_terminal(stream)
    width = None if terminal else 10_000  # nobody's paths are folded in a file
    return Console(file=stream, force_terminal=terminal, no_color=not terminal or None, width=width)


def say(text: str = "", style: str | None = None) -> None:
    """A line on the standard output."""
    _write(sys.stdout, text, style)


def note(text: str, style: str | None = None) -> None:
    """A line on the standard error."""
    _write(sys.stderr, text, style)


def heading(text: str) -> None:
    """A title, with an empty line above it."""
    say()
    say(text, style="bold")


def as_json(value: Any) -> None:
    """A value for programs, on the standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def findings(found: Sequence[Finding]) -> None:
    """Findings on the standard error, errors first, each with its remedy beneath."""
    from castiron.diagnostics.render import print_findings

    sys.stdout.flush()
    print_findings(list(found), rich_console(sys.stderr))


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Iterable[int] = ()) -> None:
    """A table on the standard output.

    Args:
        headers: titles of the columns.
        rows: cells; None is shown as an empty cell.
        right: positions of the columns that are set to the right (numbers).
    """
    cells = [["" if c is None else str(c) for c in row] for row in rows]
    right = set(right)
    if not is_terminal():
        for line in plain_table(headers, cells, right):
            sys.stdout.write(line + "\n")
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for i, title in enumerate(headers):
        shown.add_column(title, justify="right" if i in right else "left", overflow="fold")
    for row in cells:
        shown.add_row(*(Text(c) for c in row))
    rich_console().print(shown)


def plain_table(
    headers: Sequence[str], cells: Sequence[Sequence[str]], right: Iterable[int] = ()
) -> list[str]:
    """The lines of a table: columns as wide as their widest cell, two blanks apart."""
    right = set(right)
    every = [list(headers), *(list(row) for row in cells)]
    widths = [max(len(row[i]) for row in every) for i in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        parts = [
            c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(parts).rstrip()

    return [line(row) for row in every]


def fields(values: Mapping[str, Any]) -> None:
    """Names and values, a line each."""
    width = max((len(name) for name in values), default=0)
    for name, value in values.items():
        say(f"{name.ljust(width)}  {value}")


def _write(stream: IO[str], text: str, style: str | None) -> None:
    if style and text and is_terminal(stream):
        from rich.text import Text

        rich_console(stream).print(Text(text, style=style), soft_wrap=True, highlight=False)
    else:
        stream.write(text + "\n")
        stream.flush()
