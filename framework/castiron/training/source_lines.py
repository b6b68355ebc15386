"""Lines of the user's code, told apart from a framework's and Python's own."""

from __future__ import annotations

import linecache
import sysconfig
from pathlib import Path
from types import FrameType

from castiron.diagnostics import Place
from castiron.training.incident import Source

Line = tuple[str, int]
"""File and line."""

_STANDARD = sysconfig.get_path("stdlib")
_COMMAND = ("castiron", "typer", "click")
"""What `castiron train` and the others are made of, which call the code that trains."""


def source(lines: tuple[Line, ...]) -> Source | None:
    """The innermost line, with its text; None where there is none."""
    if not lines:
        return None
    file, line = lines[0]
    return Source(file=file, line=line, text=linecache.getline(file, line).strip())


def place(lines: tuple[Line, ...], module: str | None, op: str | None, phase: str | None) -> Place:
    """A place from lines, innermost first."""
    file, line = lines[0] if lines else (None, None)
    return Place(file=file, line=line, module=module, op=op, phase=phase)


class UsersCode:
    """Whether code that runs is the user's: neither of these packages' nor Python's own."""

    def __init__(self, *frameworks: str) -> None:
        self._frameworks = frameworks
        self._known: dict[str, bool] = {}

    def has(self, frame: FrameType) -> bool:
        """Whether a frame's code is the user's; found out once per file."""
        file = frame.f_code.co_filename
        known = self._known.get(file)
        if known is None:
            known = self._known[file] = self._is_users(frame)
        return known

    def _is_users(self, frame: FrameType) -> bool:
        file = frame.f_code.co_filename
        if file.startswith("<") and "ipython" not in file:
            return False
        package = frame.f_globals.get("__package__") or frame.f_globals.get("__name__", "")
        if package.partition(".")[0] in (*self._frameworks, *_COMMAND) or Path(file).name == "castiron":
            return False
        return not file.startswith(_STANDARD) or "-packages" in file
