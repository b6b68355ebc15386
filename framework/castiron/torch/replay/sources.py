"""Lines of the user's code, found from the running stack."""

from __future__ import annotations

import sys
from types import FrameType

from castiron.training.source_lines import Line, UsersCode

USERS = UsersCode("torch", "castiron", "lightning", "lightning_fabric", "pytorch_lightning", "torchmetrics")
"""All but packages whose lines are nobody's model. (`castiron_recipes` is no such package.)"""


def lines_running(skip: int = 1) -> tuple[Line, ...]:
    """Lines of the user's code that are running, innermost first."""
    found = []
    frame: FrameType | None = sys._getframe(skip)
    while frame is not None:
        if USERS.has(frame):
            found.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return tuple(found)
