"""Lines of the user's code, found from the running stack."""

from __future__ import annotations

import linecache
import sys
import sysconfig
from types import FrameType

from castiron.training.incident import Source

Line = tuple[str, int]

_FRAMEWORKS = ("tensorflow", "keras", "castiron", "absl", "wrapt")
"""Packages whose lines are nobody's model. (`castiron_recipes` is.)"""
_STANDARD = sysconfig.get_path("stdlib")
_known: dict[str, bool] = {}


def lines_running(skip: int = 1) -> tuple[tuple[Line, ...], int]:
    """Lines of the user's code that are running, innermost first; and a mark of the place in all code that
    runs, which comes again where a loop comes round."""
    found = []
    place = []
    frame: FrameType | None = sys._getframe(skip)
    while frame is not None:
        place.append((frame.f_code, frame.f_lasti))
        file = frame.f_code.co_filename
        users = _known.get(file)
        if users is None:
            users = _known[file] = _is_users(frame)
        if users:
            found.append((file, frame.f_lineno))
        frame = frame.f_back
    return tuple(found), hash(tuple(place))


def source(lines: tuple[Line, ...]) -> Source | None:
    """The innermost line, with its text; None where there is none."""
    if not lines:
        return None
    file, line = lines[0]
    return Source(file=file, line=line, text=linecache.getline(file, line).strip())


def _is_users(frame: FrameType) -> bool:
    """Whether code is neither a framework's nor Python's own."""
    file = frame.f_code.co_filename
    if file.startswith("<") and "ipython" not in file:
        return False
    if frame.f_globals.get("__name__", "").partition(".")[0] in _FRAMEWORKS:
        return False
    return not file.startswith(_STANDARD) or "-packages" in file
