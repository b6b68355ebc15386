"""Replays a bad step and names what went wrong first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from castiron.torch.replay import blame
from castiron.torch.replay.optimizers import inspect_optimizers
from castiron.torch.replay.recorder import Recorder, ran_compiled, recording
from castiron.torch.replay.rows import batch_rows, select
from castiron.torch.replay.step import ReplayStep
from castiron.torch.replay.tracker import Origin
from castiron.torch.replay.values import State, is_finite, named_tensors, state_of, state_of_data
from castiron.training.bad_rows import bad_rows
from castiron.training.incident import Attribution, BadRow


def attribute(step: ReplayStep) -> Attribution:
    """Run a held step again under instrumentation and find the first bad operation.

    Parameters, optimizer state, buffers and random generators are afterwards as before; gradients are gone.
    Waits for the device at every operation; costs a few ordinary steps.
    """
    replay = _Replay(step)
    kept = [(p, p.grad) for p in step.root.parameters()]
    try:
        return replay.attribute()
    finally:
        step.restore()
        for parameter, _ in kept:
            parameter.grad = None


class _Replay:
    def __init__(self, step: ReplayStep) -> None:
        self.step = step
        self.parameters = dict(step.root.named_parameters())
        self.buffers = dict(step.root.named_buffers())
        self.paths: dict[nn.Module, str] = {m: n for n, m in step.root.named_modules()}
        self.states = {
            Origin("parameter", n): state_of(p, masks=False) for n, p in self.parameters.items()
        } | {Origin("buffer", n): state_of(b, masks=True) for n, b in self.buffers.items()}

    def attribute(self) -> Attribution:
        step = self.step
        step.restore()
        for i, batch in enumerate(step.batches):
            if (
                step.verdict.micro_batches
                and i not in step.verdict.micro_batches
                and i != len(step.batches) - 1
            ):
                self._run(batch, i)  # only so that what is drawn at random comes out the same
                continue
            recorder, loss = self._record(batch, i)
            seen = self._seen(loss)
            if seen:
                return self._explain(recorder, loss, seen, i)
        return inspect_optimizers(step) or blame.not_reproduced(step, ran_compiled())

    # --- running -------------------------------------------------------------------------------------

    def _run(self, batch: Any, i: int) -> Tensor | None:
        for parameter in self.parameters.values():
            parameter.grad = None
        return self.step.run(batch, i)

    def _record(self, batch: Any, i: int) -> tuple[Recorder, Tensor | None]:
        names = {id(t): n for n, t in (*self.parameters.items(), *self.buffers.items())}
        fields = [(n or "batch", t) for n, t in named_tensors(batch)]
        names |= {id(t): n for n, t in fields}
        recorder = Recorder(self.paths, names, batch_rows(batch))
        for kind, tensors in (("parameter", self.parameters), ("buffer", self.buffers)):
            for name, tensor in tensors.items():
                origin = Origin(kind, name)  # type: ignore[arg-type]
                recorder.tracker.declare(tensor, origin, self.states[origin])
        for name, tensor in fields:
            recorder.tracker.declare(tensor, Origin("batch", name), state_of_data(tensor))
        with recording(recorder):
            loss = self._run(batch, i)
        return recorder, loss

    def _seen(self, loss: Tensor | None) -> dict[str, list[str]]:
        """What is bad after a micro-batch, as the guard would see it."""
        found: dict[str, list[str]] = {}
        if loss is not None and not is_finite(loss):
            found["loss"] = ["loss"]
        gradients = [n for n, p in self.parameters.items() if p.grad is not None and not is_finite(p.grad)]
        if gradients:
            found["gradients"] = gradients
        buffers = [
            n
            for n, b in self.buffers.items()
            if self.states[Origin("buffer", n)] is State.GOOD and not is_finite(b)
        ]
        if buffers:
            found["buffers"] = buffers
        return found

    def _is_bad(self, batch: Any, i: int, rows: Sequence[int], of: int) -> bool | None:
        """Whether the micro-batch made of these rows alone is bad; None where it cannot be run."""
        self.step.restore()
        chosen = list(rows)
        for attempt in (chosen, chosen * 2):  # BatchNorm wants more than one row
            try:
                loss = self._run(select(batch, attempt, of), i)
            except (RuntimeError, ValueError, IndexError):
                continue
            return bool(self._seen(loss))
        return None

    # --- explaining ----------------------------------------------------------------------------------

    def _explain(
        self, recorder: Recorder, loss: Tensor | None, seen: Mapping[str, list[str]], i: int
    ) -> Attribution:
        batch = self.step.batches[i]
        of = batch_rows(batch)
        found = blame.find(recorder, loss, seen, self.parameters, self.buffers, self.step)
        rows: list[BadRow] = []
        if of is not None and found.rows != []:
            if found.certain and found.rows is not None:
                indices = found.rows
            else:
                indices = bad_rows(lambda r: self._is_bad(batch, i, r, of), of, found.rows)
            rows = _named(batch, indices)
        micro = i if len(self.step.batches) > 1 else None
        return found.attribution.model_copy(update={"rows": tuple(rows), "micro_batch": micro})


def _named(batch: Any, indices: Sequence[int]) -> list[BadRow]:
    numbers = (
        batch["row"] if isinstance(batch, Mapping) and isinstance(batch.get("row"), torch.Tensor) else None
    )
    return [BadRow(index=i, row=None if numbers is None else int(numbers[i])) for i in indices]
