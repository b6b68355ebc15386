"""One decision for all processes of a training."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor, distributed

from castiron.diagnostics import Finding
from castiron.training.held import ELSEWHERE, Verdict, suspicion
from castiron.training.incident import Incident


def agreed(trainer: pl.Trainer, verdict: Verdict) -> Verdict:
    """The verdict of all processes: bad where that of one is. They all have to call it."""
    if trainer.world_size == 1:
        return verdict
    bad = trainer.strategy.reduce_boolean_decision(verdict.bad, all=False)
    if verdict.bad or not bad:
        return verdict
    return Verdict(True, {ELSEWHERE: ()})


def agreed_flag(trainer: pl.Trainer, flag: Tensor) -> Tensor:
    """1.0 where the flag of one process is, 0-dim, on the device. They all have to call it; none waits."""
    if trainer.world_size == 1:
        return flag
    found = trainer.strategy.reduce(flag, reduce_op="max")
    assert isinstance(found, Tensor)
    return found


def suspected(trainer: pl.Trainer, own: Verdict) -> bool:
    """Whether this rank's part of the step looks bad. All processes have to call it."""
    if trainer.world_size == 1:
        return True
    mine = suspicion(own)
    return mine == float(_of_all(trainer, mine).max())


def first_rank(trainer: pl.Trainer, suspect: bool, reproduced: bool) -> int:
    """The rank that speaks for all: the lowest where replay met the fault again, else the lowest suspect. All
    processes have to call it."""
    if trainer.world_size == 1:
        return 0
    return int(_of_all(trainer, 2.0 * (suspect and reproduced) + suspect).argmax())


def told(trainer: pl.Trainer, incident: Incident | None, rank: int) -> Incident:
    """The incident of that rank, on all of them. All processes have to call it."""
    if trainer.world_size > 1:
        text = incident.model_dump_json() if incident is not None else ""
        incident = Incident.model_validate_json(trainer.strategy.broadcast(text, src=rank))
    assert incident is not None
    return incident


def told_stored(
    trainer: pl.Trainer, path: Path | None, problems: tuple[Finding, ...], rank: int
) -> tuple[Path | None, tuple[Finding, ...]]:
    """The folder that this rank stored an incident in, or why it could not, on all of them. All processes
    have to call it."""
    if trainer.world_size == 1:
        return path, problems
    found: tuple[Path | None, tuple[Finding, ...]] = trainer.strategy.broadcast((path, problems), src=rank)
    return found


def _of_all(trainer: pl.Trainer, value: float) -> Tensor:
    """A number of each rank's [ranks]."""
    own = torch.tensor(float(value), device=trainer.strategy.root_device)
    found = [torch.empty_like(own) for _ in range(trainer.world_size)]
    distributed.all_gather(found, own)
    return torch.stack(found)
