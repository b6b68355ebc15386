"""Pieces that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from castiron.training.backend import Backend, Job
    from castiron.training.config_file import LoadedConfig


def chosen(option: str, value: str, words: Sequence[str]) -> Any:
    """The value of an option, one of these words.

    Raises:
        ConfigError: it is none of them (X820).
    """
    from castiron.diagnostics import ConfigError, finding
    from castiron.training.suggestions import did_you_mean, near

    if value in words:
        return value
    expected = f"{', '.join(words[:-1])} or {words[-1]}"
    remedy = did_you_mean(near(value, words)) or None
    raise ConfigError(
        finding("X820", "", expected=f"{expected} after {option}", received=f"'{value}'", remedy=remedy)
    )


def job_of(
    run: str,
    runs: Path,
    checkpoint: Literal["best", "last"],
    overrides: Sequence[str] = (),
    *,
    weights: Path | None = None,
    on_mismatch: str = "refuse",
) -> tuple[Backend, Job, LoadedConfig]:
    """Backend and job to use a trained run.

    Raises:
        CastironError: no such run, no checkpoint, or the config does not hold any more.
    """
    from castiron.cli.reporter import TerminalReporter
    from castiron.training.backend import Job, load_backend
    from castiron.training.launch import load_run
    from castiron.training.run_directory import RunDirectory

    found = RunDirectory.open(run, runs)
    path = found.checkpoint(checkpoint)
    mismatch = chosen("--on-mismatch", on_mismatch, ("refuse", "cast"))
    loaded = load_run(found, overrides)
    job = Job(
        config=loaded.config,
        recipe=loaded.recipe,
        run=found,
        checkpoint=path,
        weights=weights,
        on_mismatch=mismatch,
        reporter=TerminalReporter("quiet"),
    )
    return load_backend(loaded.config.backend), job, loaded
