"""Replays a bad step eagerly and names what went wrong first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from castiron.keras.replay.blame import Recording
from castiron.keras.replay.recorder import Recorder
from castiron.keras.replay.rows import batch_rows, select
from castiron.keras.replay.step import LossRun, ReplayStep, Run, Seen, StepVariables, WholeRun
from castiron.keras.replay.updating import blame_update
from castiron.keras.replay.values import named_tensors, state_of_data
from castiron.training.bad_rows import bad_rows
from castiron.training.event_words import CODES
from castiron.training.held import row_numbers
from castiron.training.incident import Attribution, BadRow
from castiron.training.source_lines import Line, source

_COMPILED = (
    "Compiled and eager code disagree, or an operation is not deterministic: train with "
    "`trainer.compile=false` and `trainer.deterministic=true`; where it stays, suspect the device."
)
_RANDOM = (
    "Draw with `keras.random` and a `keras.random.SeedGenerator` that the model keeps, or with a "
    "`tf.random.Generator`: their states are put back, and a step comes out the same again."
)


def attribute(step: ReplayStep) -> Attribution:
    """Run a held step again, eagerly and under instrumentation, and find the first bad operation.

    Variables are afterwards as before. Costs some hundred ordinary steps for a recurrent model: every
    operation is looked at.
    """
    own = step.own
    if own is None:
        return _Replay(step).attribute()
    if own.why_not_replayed:
        return _not_replayed(step, own.why_not_replayed)
    try:
        return _Replay(step).attribute()
    except Exception as error:  # what a step of the user's own may raise is anything
        said = (str(error).splitlines() or [""])[0].strip()
        return _not_replayed(step, f"run eagerly, it raises {type(error).__name__}: {said}")


class _Replay:
    def __init__(self, step: ReplayStep) -> None:
        self.step, self.core = step, step.core
        self.held = StepVariables(step.core, step.own)
        self.run: Run = LossRun(step, self.held) if step.own is None else WholeRun(step.own)
        self._before = self.run.snapshot.take()
        self._random: dict[str, tuple[Line, ...]] = {}

    def attribute(self) -> Attribution:
        step = self.step
        try:
            for xla in (False, True) if self.core.jit_compile else (False,):
                if found := self._attribute_all(xla):
                    return found
            if step.own is None and (found := blame_update(self.core, step.forward, step.batches)):
                return found
            return _not_reproduced(step, self._random)
        finally:
            self.run.snapshot.put_back(self._before)

    def _attribute_all(self, xla: bool) -> Attribution | None:
        step = self.step
        for i, batch in enumerate(step.batches):
            kept = self.run.snapshot.take()
            try:
                if found := self._attribute(batch, i, xla):
                    return found
            finally:
                self.run.snapshot.put_back(kept)
            if i + 1 < len(step.batches):
                self.run.run(batch)  # so that what is drawn at random comes out the same
        self.run.snapshot.put_back(self._before)
        return None

    def _attribute(self, batch: Any, i: int, xla: bool) -> Attribution | None:
        rows = batch_rows(batch)
        fields = {n or "batch": (t, state_of_data(t)) for n, t in named_tensors(batch)}
        optimizers = self.run.optimizers
        recorder = Recorder(self.core.model, self.held.known, fields, rows, xla=xla, optimizers=optimizers)
        before = self.run.snapshot.take()
        with recorder.recording():
            seen, left = self.run.run_recorded(recorder, batch)
        self._random |= recorder.random
        if not seen:
            return None
        self.run.snapshot.put_back(before)
        ends = self.run.ends(recorder, seen, left)
        blame = Recording(recorder, self.held, batch, rows, self.step.scale).blame(seen, ends)
        found = blame.found or _not_reproduced(self.step, self._random)
        blamed: list[int] = []
        suspects = blame.suspects
        if rows is not None and suspects != []:
            if blame.certain and suspects is not None:
                blamed = suspects
            else:
                some = suspects if suspects is not None and len(suspects) < rows else None
                blamed = bad_rows(lambda chosen: self._is_bad(batch, chosen, rows, xla, seen), rows, some)
        numbers = row_numbers(batch)
        named = tuple(BadRow(index=r, row=numbers[r] if numbers else None) for r in blamed)
        micro = i if len(self.step.batches) > 1 else None
        return found.model_copy(update={"rows": named, "micro_batch": micro})

    def _is_bad(self, batch: Any, rows: Sequence[int], of: int, xla: bool, seen: Seen) -> bool | None:
        """Whether the micro-batch made of these rows alone is bad; None where it cannot be run.

        Where the whole batch's loss is bad, gradients alone are none: scaled, they may overflow anyway.
        """
        if xla:
            return None
        chosen = list(rows)
        for attempt in (chosen, chosen * 2):
            kept = self.run.snapshot.take()
            try:
                found, _ = self.run.run(select(batch, attempt, of))
                return bool("loss" in found if "loss" in seen else found)
            except (tf.errors.OpError, ValueError, IndexError):
                continue
            finally:
                self.run.snapshot.put_back(kept)
        return None


def _not_reproduced(step: ReplayStep, random: dict[str, tuple[Line, ...]]) -> Attribution:
    """The step is finite when it is run again; or what was recorded explains nothing."""
    compiled = (
        f"The guard saw NaN or infinity in {_seen(step)} of the compiled step; run eagerly it is finite"
    )
    if not random:
        return _without_producer(step, compiled, _COMPILED)
    op, lines = next(iter(random.items()))
    at = source(lines)
    drawn = f"{op}{f' at {at}' if at else ''} draws random numbers that cannot be drawn again"
    return _without_producer(step, f"{compiled}; {drawn}", _RANDOM)


def _not_replayed(step: ReplayStep, why: str) -> Attribution:
    name = f"{type(step.core.model).__name__}.train_step"
    return _without_producer(
        step,
        f"The guard saw NaN or infinity in {_seen(step)} of what {name} left; it was not run again: {why}",
        f"Let {name} run on one device, eagerly as well as compiled, and what is to blame is found.",
    )


def _without_producer(step: ReplayStep, message: str, remedy: str) -> Attribution:
    return Attribution(
        code=CODES["not-reproduced"],
        phase="forward" if {"loss", "logs"} & set(step.verdict.seen) else "backward",
        event="not-reproduced",
        message=message,
        remedy=remedy,
        reproduced=False,
    )


def _seen(step: ReplayStep) -> str:
    return ", ".join(step.verdict.seen) or "the step"
