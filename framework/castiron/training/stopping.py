"""Ctrl-C and what a cluster sends, noted: whoever trains asks for it between steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Literal, Self

Reason = Literal["interrupted", "stopped"]


class StopRequests:
    """Notes Ctrl-C, SIGTERM and SIGUSR1, within `with`.

    A second Ctrl-C does not wait: it raises `KeyboardInterrupt` where training stands. Signal handlers are
    installed only in the main thread (elsewhere Python allows none).
    """

    _REASONS: dict[int, Reason] = {
        signal.SIGINT: "interrupted",
        signal.SIGTERM: "stopped",
        signal.SIGUSR1: "stopped",  # what Slurm is commonly asked to send before time is up
    }

    def __init__(self) -> None:
        self.asked: Reason | None = None
        """Why it is to stop; None while nobody asked."""
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in self._REASONS:
                self._former[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = self._REASONS[number]
