"""What writers of a run's health have in common: they are closed, and a disk that is full is told once."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from castiron.diagnostics import Finding, Place, finding

Tell = Callable[[Finding], None]


class Closing(ABC):
    """Something to close, also as a context manager."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left. Closing twice does no harm."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Unwritable:
    """Tells, once for each file, that it cannot be written: a warning, as training goes on without.

    Args:
        tell: what to do with it; None: a `RuntimeWarning`.
    """

    def __init__(self, tell: Tell | None = None) -> None:
        self._tell = tell or _warn
        self._known: set[Path] = set()

    def report(self, what: str, path: Path, error: OSError, remedy: str) -> None:
        if path not in self._known:
            self._known.add(path)
            self._tell(cannot_write(what, path, error, remedy))


def cannot_write(what: str, path: Path, error: OSError, remedy: str) -> Finding:
    """X819, as a warning. `what` is a plural: 'TensorBoard events'."""
    return finding(
        "X819",
        f"{what} cannot be written: {error.strerror or error}",
        place=Place(file=str(path)),
        severity="warning",
        remedy=remedy,
    )


def _warn(problem: Finding) -> None:
    warnings.warn(str(problem), RuntimeWarning, stacklevel=2)
