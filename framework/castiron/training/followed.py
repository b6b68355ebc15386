"""The directory of a run as processes see it that do not write it: rank 0 does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from castiron.training.run_directory import RunDirectory


def own_folder(run: RunDirectory, scratch: ExitStack) -> Path:
    """Where a process may write what one of them has to: the run's folder, or else one that is gone with
    `scratch`."""
    if not isinstance(run, FollowedRun):
        return run.path
    return Path(scratch.enter_context(TemporaryDirectory(prefix="castiron-rank-")))


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
