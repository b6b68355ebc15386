"""One decision for all processes of a training."""

from __future__ import annotations

import lightning.pytorch as pl
import torch

from castiron.torch.guard import Verdict
from castiron.training.incident import Incident


def agreed(trainer: pl.Trainer, verdict: Verdict) -> Verdict:
    """The verdict of all processes: bad where that of one is. They all have to call it."""
    if trainer.world_size == 1:
        return verdict
    bad = trainer.strategy.reduce_boolean_decision(verdict.bad, all=False)
    if verdict.bad or not bad:
        return verdict
    return Verdict(True, {"another rank": ()})


def first_bad_rank(trainer: pl.Trainer, own: Verdict) -> int:
    """The lowest rank whose own part of the step is bad. All processes have to call it."""
    if trainer.world_size == 1:
        return 0
    bad = torch.tensor(float(not is_others(own)), device=trainer.strategy.root_device)
    flags = trainer.strategy.all_gather(bad).flatten()
    return int(flags.argmax())


def is_others(verdict: Verdict) -> bool:
    """Whether the step is bad on other ranks only."""
    return "another rank" in verdict.seen


def told(trainer: pl.Trainer, incident: Incident | None, rank: int) -> Incident:
    """The incident of that rank, on all of them. All processes have to call it."""
    if trainer.world_size > 1:
        text = incident.model_dump_json() if incident is not None else ""
        incident = Incident.model_validate_json(trainer.strategy.broadcast(text, src=rank))
    assert incident is not None
    return incident
