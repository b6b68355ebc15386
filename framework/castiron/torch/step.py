"""What a transaction's step does, part by part: compute, clip, commit, and the way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from castiron.diagnostics import Finding
from castiron.policy import PrecisionPolicy
from castiron.torch.attempt import Attempt, Result, Turn
from castiron.torch.clipping import clip_by_norm, gradient_norm
from castiron.torch.dtypes import torch_dtype
from castiron.torch.guard import UPDATED, StepGuard
from castiron.torch.loss import check_loss
from castiron.torch.precision import Precision
from castiron.torch.scaling import Scaler
from castiron.torch.snapshot import Snapshot, drop_gradients
from castiron.training.held import Verdict


class StepCore:
    """The parts of a step; in which order they come, and whether they count, `Transaction` decides.

    Args:
        root: the model, not compiled.
        precision: what the policy made of the model.
        device: that of the model.
        optimizers: of the model's parameters.
        schedules: stepped with every commit.
        averages: updated with every commit.
        clip_norm: largest global norm of an optimizer's gradients.
        findings: takes what there is to say of the loss.
    """

    def __init__(
        self,
        root: nn.Module,
        precision: Precision,
        policy: PrecisionPolicy,
        device: torch.device,
        optimizers: tuple[Optimizer, ...],
        scaler: Scaler,
        *,
        schedules: tuple[Any, ...],
        averages: tuple[Any, ...],
        clip_norm: float | None,
        findings: list[Finding],
    ) -> None:
        self._root, self._precision, self._policy = root, precision, policy
        self._optimizers, self._scaler, self._clip_norm = optimizers, scaler, clip_norm
        self._schedules, self._averages, self._findings = schedules, averages, findings
        self.device = device
        self.guard = StepGuard(root, policy.guard.watch, optimizers)
        self.updated = UPDATED & self.guard.watch
        """What is watched of what an update changes."""
        trained = set(_parameters(*optimizers))
        self._strays = [p for p in root.parameters() if p not in trained]
        """Parameters that no optimizer has: a gradient of theirs would stay."""
        self._snapshots: dict[tuple[int, int], list[Snapshot]] = {}
        self._checked_loss = False
        self._norm: Tensor | None = None
        """Of the gradients at hand, where it was taken already."""
        self.committed = 0
        """Steps that were applied, as far as is known."""

    def snapshots(self, turns: int, of_two: int) -> list[Snapshot]:
        """One snapshot per turn.

        Args:
            of_two: 0 or 1: where verdicts are late, two steps in a row have their own.
        """
        key = (of_two, turns)
        if key not in self._snapshots:
            whole = bool(self.updated)
            first = Snapshot(self._root, self._optimizers, self._schedules, whole=whole or turns > 1)
            later = [Snapshot(self._root, self._optimizers, whole=whole) for _ in range(turns - 1)]
            self._snapshots[key] = [first, *later]
        return self._snapshots[key]

    def compute(self, turn: Turn, attempt: Attempt) -> None:
        """Losses and gradients of one turn, unscaled, shown to the guard.

        Raises:
            ValueError: the loss is no scalar.
        """
        self.drop_gradients()
        self.guard.begin()
        losses = []
        one_norm = self._clip_norm is not None and not self._strays and len(attempt.turns) == 1
        for batch in attempt.batches:
            with self._precision.forward_context():
                loss = turn.loss_of(batch)
            if not self._checked_loss:
                self._check_loss(loss)
            self.guard.see_loss(loss)
            losses.append(loss.detach())
            if len(attempt.batches) > 1:
                loss = loss / len(attempt.batches)
            with self._precision.backward_context():
                self._scaler.scale(loss).backward()
        self.guard.end()
        if len(attempt.turns) > 1:  # what this loss says of other optimizers' parameters is of no use
            drop_gradients([o for o in self._optimizers if o not in turn.optimizers])
        self._scaler.unscale_(*turn.optimizers)
        self._norm = None
        if one_norm and self.device.type == "cpu":
            self._norm = gradient_norm(_parameters(*turn.optimizers), torch_dtype(self._policy.accumulate))
        self.guard.see_gradients(self._norm)
        mean = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
        attempt.outcome.losses += (mean,)

    def again(self, turn: Turn, batch: Any, factor: float) -> Tensor:
        """Forward and backward of one micro-batch, for replay. → its loss, not scaled."""
        with self._precision.forward_context():
            loss = turn.loss_of(batch)
        with self._precision.backward_context():
            (loss * factor).backward()
        return loss

    def clip(self, turn: Turn) -> None:
        """The gradients that `compute` left."""
        if self._clip_norm is not None:
            dtype = torch_dtype(self._policy.accumulate)
            clip_by_norm(_parameters(*turn.optimizers), self._clip_norm, dtype, self._norm)

    def commit(self, attempt: Attempt) -> None:
        """The optimizers have stepped: schedules and averages follow."""
        self.committed += 1
        attempt.outcome.result = Result(True, Verdict(False))
        for schedule in self._schedules:
            schedule.step()
        for average in self._averages:
            if hasattr(average, "update_parameters"):
                average.update_parameters(self._root)
            else:
                average.update()

    def undo(self, attempt: Attempt) -> None:
        """All is as it was before the step, whatever part of it was done."""
        self.drop_gradients()
        self.guard.end()
        self._scaler.discard()
        for tensor, kept in zip(self._scaler.tensors(self.device), attempt.scale, strict=False):
            tensor.copy_(kept)
        attempt.snapshots[0].restore()

    def drop_gradients(self) -> None:
        """Those of parameters that no optimizer has among them."""
        drop_gradients(self._optimizers)
        for parameter in self._strays:
            parameter.grad = None

    def _check_loss(self, loss: Tensor) -> None:
        if loss.numel() != 1:
            raise ValueError(f"Expected a scalar loss. Received one of shape {tuple(loss.shape)}.")
        if found := check_loss(loss, self._policy):
            self._findings.append(found)
        self._checked_loss = True


def _parameters(*optimizers: Optimizer) -> list[nn.Parameter]:
    return [p for o in optimizers for group in o.param_groups for p in group["params"]]
