"""How long a run is, and its learning rate at each step: the same numbers in both wings."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol


class ScheduleSettings(Protocol):
    """What of a config's schedule is used here (`training.config.ScheduleConfig` has it)."""

    @property
    def name(self) -> str: ...
    @property
    def warmup(self) -> int | float: ...
    @property
    def final(self) -> float: ...


class LengthSettings(Protocol):
    """What of a config's trainer says how long it trains (`training.config.TrainerConfig` has it)."""

    @property
    def max_epochs(self) -> int | None: ...
    @property
    def max_steps(self) -> int | None: ...
    @property
    def accumulate(self) -> int: ...


def total_steps(config: LengthSettings, batches: int) -> int:
    """Optimizer steps of a training with so many batches an epoch. The last step of an epoch may have fewer
    batches to accumulate."""
    ends = []
    if config.max_epochs is not None:
        ends.append(config.max_epochs * -(-batches // config.accumulate))
    if config.max_steps is not None:
        ends.append(config.max_steps)
    return min(ends)


def factor_of(schedule: ScheduleSettings, steps: int) -> Callable[[int], float]:
    """Step number (from 0) → factor of the learning rate.

    The rate of step 0 is that of the first step of the warm-up, not 0, so that no step is lost; the rate of
    the last step is `final` times `lr`.

    Raises:
        ValueError: an unknown schedule, or fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"Expected at least 1 step. Received {steps}.")
    known = ("constant", "cosine", "linear", "one-cycle")
    if schedule.name not in known:
        raise ValueError(f"Expected a schedule ({', '.join(known)}). Received {schedule.name!r}.")
    warmup = schedule.warmup if isinstance(schedule.warmup, int) else round(schedule.warmup * steps)
    return partial(_factor, name=schedule.name, warmup=min(warmup, steps), steps=steps, final=schedule.final)


def _factor(step: int, *, name: str, warmup: int, steps: int, final: float) -> float:
    if step < warmup:
        part = (step + 1) / (warmup + 1)
        return (1 - math.cos(math.pi * part)) / 2 if name == "one-cycle" else part
    if name == "constant":
        return 1.0
    last = max(steps - 1 - warmup, 1)
    part = min((step - warmup) / last, 1.0)
    down = 1 - part if name == "linear" else (1 + math.cos(math.pi * part)) / 2
    return final + (1 - final) * down
