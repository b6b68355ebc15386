"""Whose line it is: of the running stack within a traced step, and of an error's traceback."""

from __future__ import annotations

import sys
from types import FrameType

from castiron.torch.replay.sources import USERS
from castiron.training.source_lines import Line

_MACHINERY = ("castiron.torch.audit.recorder", "castiron.torch.audit.lines", "torch.overrides")
_EDGE = frozenset(("castiron.torch.audit.tracer", "castiron.torch.audit.continuous"))
"""Whoever stands outside of these only asked for the audit."""


def lines_running() -> tuple[Line, ...]:
    """Lines of the user's code that run within the traced step, innermost first."""
    found = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") in _EDGE:
            break
        if USERS.has(frame):
            found.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return tuple(found)


def called_by_user() -> bool:
    """Whether the nearest line outside of the machinery that intercepts functions is the user's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") in _MACHINERY:
        frame = frame.f_back
    return frame is not None and USERS.has(frame)


def lines_of(error: BaseException) -> tuple[Line, ...]:
    """The user's lines in an error's traceback, innermost first."""
    found = []
    trace = error.__traceback__
    while trace is not None:
        if USERS.has(trace.tb_frame):
            found.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    return tuple(reversed(found))
