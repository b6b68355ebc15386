"""Learning-rate schedules from a config: warm-up, then constant, cosine, linear or one-cycle."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from castiron.training.schedules import ScheduleSettings, factor_of


def build_schedule(optimizer: Optimizer, schedule: ScheduleSettings, steps: int) -> LambdaLR | None:
    """The schedule of a run of so many optimizer steps; None where the rate stays as it is.

    Step it after every optimizer step. The rate of step 0 is that of the first step of the warm-up, not 0,
    so that no step is lost; the rate of the last step is `final` times `lr`.

    Raises:
        ValueError: an unknown schedule, or fewer than one step.
    """
    if schedule.name == "constant" and not schedule.warmup:
        return None
    return LambdaLR(optimizer, factor_of(schedule, steps))
