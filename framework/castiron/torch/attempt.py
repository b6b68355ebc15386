"""A step under way: what it is computed from, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from castiron.diagnostics import Finding
from castiron.torch.late import LateVerdict
from castiron.torch.snapshot import Snapshot
from castiron.training.held import Verdict

LossOf = Callable[[Any], Tensor]
"""Batch → scalar loss: forward pass and loss, nothing else."""
Losses = LossOf | Mapping[Optimizer, LossOf]


@dataclass(frozen=True)
class Turn:
    """Optimizers that step together, on one loss."""

    optimizers: tuple[Optimizer, ...]
    loss_of: LossOf


class StepOutcome:
    """What became of a step. To ask for more than the loss waits for the device where the verdict is late."""

    def __init__(self, settle: Callable[[], None]) -> None:
        self._settle = settle
        self.result: Result | None = None
        """What became of it, where that is known."""
        self.losses: tuple[Tensor, ...] = ()
        """One loss per optimizer in turn, detached, 0-dim, on the device: means over the micro-batches."""

    @property
    def loss(self) -> Tensor:
        """The loss, detached, 0-dim, on the device; of the last optimizer in turn."""
        return self.losses[-1]

    @property
    def committed(self) -> bool:
        """Whether the step was applied."""
        return self._known().committed

    @property
    def verdict(self) -> Verdict:
        """What the guard saw."""
        return self._known().verdict

    @property
    def skipped(self) -> str | None:
        """Why an expected overflow was held; None otherwise."""
        return self._known().skipped

    @property
    def finding(self) -> Finding | None:
        """What is to blame where the step was held for more than that."""
        return self._known().finding

    def _known(self) -> Result:
        if self.result is None:
            self._settle()
        assert self.result is not None
        return self.result


@dataclass(frozen=True, slots=True)
class Result:
    """How a step was settled."""

    committed: bool
    verdict: Verdict
    skipped: str | None = None
    finding: Finding | None = None


class Attempt:
    """A step, from its begin until it is settled."""

    def __init__(
        self, turns: list[Turn], batches: list[Any], snapshots: list[Snapshot], outcome: StepOutcome
    ) -> None:
        self.turns, self.batches, self.snapshots, self.outcome = turns, batches, snapshots, outcome
        self.scale: list[Tensor] = []
        self.reading: LateVerdict | None = None
