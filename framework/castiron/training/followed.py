"""The directory of a run as processes see it that do not write it: rank 0 does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from castiron.training.run_directory import RunDirectory


class FollowedRun(RunDirectory):
    """Reads what is there, as any `RunDirectory`; writing does nothing. Incidents, which the rank that met
    them stores, do not pass through here."""

    def write_text(self, name: str, text: str) -> Path:
        return self.path / name

    def put_back(self, name: str, content: bytes | None) -> None:
        pass

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        pass

    def trim_metrics(self, step: int) -> None:
        pass

    def discard_if_unused(self) -> bool:
        return False

    @contextmanager
    def claimed(self) -> Iterator[RunDirectory]:
        yield self
