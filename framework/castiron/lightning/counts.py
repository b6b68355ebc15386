"""Lightning's counts of what a step did, and what it logged: kept, so that a held step can be taken back."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

Counts = list[tuple[int, int]]
_LOGGED = ("value", "cumulated_batch_size", "_forward_cache", "has_reset", "_update_count", "_computed")


def counts(trainer: pl.Trainer) -> Counts:
    """Optimizer and schedule steps, begun and completed."""
    return [(t.ready, t.completed) for t in _trackers(trainer)]


def put_back(trainer: pl.Trainer, kept: Counts) -> None:
    """Set the counts to what they were."""
    for tracker, (ready, completed) in zip(_trackers(trainer), kept, strict=True):
        tracker.ready, tracker.completed = ready, completed


def logged(trainer: pl.Trainer) -> dict[str, dict[str, Any]]:
    """What the module has logged (`self.log`) up to now. Lightning never changes these values in place."""
    results = trainer.fit_loop.epoch_loop._results
    return {key: {n: getattr(r, n, None) for n in _LOGGED} for key, r in results.items()}


def unlog(trainer: pl.Trainer, kept: dict[str, dict[str, Any]]) -> None:
    """Take back what was logged since."""
    for key, result in trainer.fit_loop.epoch_loop._results.items():
        if key not in kept:
            result.reset()
        for name, value in kept.get(key, {}).items():
            if hasattr(result, name):
                setattr(result, name, value)
        result._forward_cache = None  # or the held step's own value would still be written


def _trackers(trainer: pl.Trainer) -> list[Any]:
    loop = trainer.fit_loop.epoch_loop
    steps = loop.automatic_optimization.optim_progress.optimizer.step
    by_hand = loop.manual_optimization.optim_step_progress
    return [t for p in (steps, by_hand, loop.scheduler_progress) for t in (p.total, p.current)]
