"""Signals that ask a run to end while no step is under way: set-up, the test, the last files."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send before they end a job: SIGTERM, and SIGUSR1 where Slurm is asked to."""


class Preempted(KeyboardInterrupt):
    """A scheduler wants the process to end. (Like Ctrl-C, no error: `except Exception` lets it pass.)"""


@contextmanager
def preemptible() -> Iterator[None]:
    """Raise `Preempted` where the main thread stands when a scheduler asks for the end; once.

    A wing's own handlers, which finish a step first, take over while it trains. Handlers that the program has
    set itself stay, and outside the main thread Python allows none.
    """
    former: dict[int, Any] = {}
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if not asked:  # what is left to do then is done: a summary is written
            asked = True
            raise Preempted(signal.Signals(number).name)

    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                former[number] = signal.signal(number, ask)
    try:
        yield
    finally:
        for which, handler in former.items():
            signal.signal(which, handler)
