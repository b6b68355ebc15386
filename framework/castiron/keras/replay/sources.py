"""Lines of the user's code, found from the running stack."""

from __future__ import annotations

import sys
from types import FrameType

from castiron.training.source_lines import Line, UsersCode

_USERS = UsersCode("tensorflow", "keras", "castiron", "absl", "wrapt")
"""All but packages whose lines are nobody's model. (`castiron_recipes` is no such package.)"""


def lines_running(skip: int = 1) -> tuple[tuple[Line, ...], int]:
    """Lines of the user's code that are running, innermost first; and a mark of the place in all code that
    runs, which comes again where a loop comes round."""
    found = []
    place = []
    frame: FrameType | None = sys._getframe(skip)
    while frame is not None:
        place.append((frame.f_code, frame.f_lasti))
        if _USERS.has(frame):
            found.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return tuple(found), hash(tuple(place))
