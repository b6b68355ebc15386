"""Replays a bad step eagerly and names what went wrong first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from castiron.keras.modules import own_variables, variables, walk
from castiron.keras.replay.explain import remedy, sentence
from castiron.keras.replay.recorder import GATHERS, MOVES, Call, Origin, Recorder
from castiron.keras.replay.rows import batch_rows, select
from castiron.keras.replay.values import (
    State,
    bad_along,
    is_finite,
    named_tensors,
    state_of,
    state_of_data,
    statistics,
)
from castiron.keras.snapshot import Snapshot
from castiron.keras.step import Forward, StepCore
from castiron.training.bad_rows import bad_rows
from castiron.training.event_words import CODES
from castiron.training.held import Verdict, row_numbers
from castiron.training.incident import Attribution, BadRow, Link, Phase, Producer
from castiron.training.source_lines import source

_LINKS = 10


@dataclass(frozen=True, slots=True)
class ReplayStep:
    """A held step, and how to run it again. Everything is as before it."""

    core: StepCore
    forward: Forward
    batches: Sequence[Any]
    """Micro-batches, as tensors."""
    verdict: Verdict
    scale: float = 1.0
    """The loss scale it ran with."""


def attribute(step: ReplayStep) -> Attribution:
    """Run a held step again, eagerly and under instrumentation, and find the first bad operation.

    Variables are afterwards as before. Costs some hundred ordinary steps for a recurrent model: every
    operation is looked at.
    """
    return _Replay(step).attribute()


class _Replay:
    def __init__(self, step: ReplayStep) -> None:
        self.step, self.core = step, step.core
        model = step.core.model
        named = variables(model)
        buffers = {id(v) for _, layer in walk(model) for v in own_variables(layer)[1]}
        self.variables = {
            id(v._value): (Origin("buffer" if id(v) in buffers else "parameter", n), v._value)
            for n, v in named.items()
        }
        self.buffers = {
            o.name: v
            for o, v in self.variables.values()
            if o.kind == "buffer"
            and v.dtype.is_floating
            and state_of(v.read_value(), masks=True) is State.GOOD
        }
        self.names = step.core._names
        self._before = step.core.snapshot.take()

    def attribute(self) -> Attribution:
        for xla in (False, True) if self.core.jit_compile else (False,):
            if found := self._attribute_all(xla):
                return found
        if found := self._optimizer():
            return found
        return self._not_reproduced()

    def _attribute_all(self, xla: bool) -> Attribution | None:
        step = self.step
        for i, batch in enumerate(step.batches):
            kept = self.core.snapshot.take()
            try:
                if found := self._attribute(batch, i, xla):
                    return found
            finally:
                self.core.snapshot.put_back(kept)
            if i + 1 < len(step.batches):
                self._run(batch)  # so that what is drawn at random comes out the same
        self.core.snapshot.put_back(self._before)
        return None

    # --- running -------------------------------------------------------------------------------------

    def _run(self, batch: Any) -> tuple[Any, list[Any]]:
        loss, _, gradients = self.core._gradients(self.step.forward, batch)
        return loss, gradients

    def _attribute(self, batch: Any, i: int, xla: bool) -> Attribution | None:
        rows = batch_rows(batch)
        fields = {n or "batch": (t, state_of_data(t)) for n, t in named_tensors(batch)}
        recorder = Recorder(self.core.model, self.variables, fields, rows, xla=xla)
        before = self.core.snapshot.take()
        with recorder.recording():
            loss, gradients = self._run_recorded(recorder, batch)
        seen = self._seen(loss, gradients)
        if not seen:
            return None
        self.core.snapshot.put_back(before)
        found, suspects, certain = self._find(recorder, loss, gradients, seen, batch, rows)
        blamed: list[int] = []
        if rows is not None and suspects != []:
            if certain and suspects is not None:
                blamed = suspects
            else:
                some = suspects if suspects is not None and len(suspects) < rows else None
                blamed = bad_rows(lambda chosen: self._is_bad(batch, chosen, rows, xla, seen), rows, some)
        numbers = row_numbers(batch)
        named = tuple(BadRow(index=r, row=numbers[r] if numbers else None) for r in blamed)
        micro = i if len(self.step.batches) > 1 else None
        return found.model_copy(update={"rows": named, "micro_batch": micro})

    def _run_recorded(self, recorder: Recorder, batch: Any) -> tuple[Any, list[Any]]:
        # The tape's backward pass begins where forward has returned.
        def forward(given: Any) -> tuple[Any, Any]:
            result = self.step.forward(given)
            recorder.phase = "backward"
            return result

        loss, _, gradients = self.core._gradients(forward, batch)
        return loss, gradients

    def _seen(self, loss: Any, gradients: Sequence[Any]) -> dict[str, list[str]]:
        """What is bad after a micro-batch, as the guard would see it."""
        found: dict[str, list[str]] = {}
        if not is_finite(loss):
            found["loss"] = ["loss"]
        bad = [n for n, g in zip(self.names, gradients, strict=True) if g is not None and not is_finite(g)]
        if bad:
            found["gradients"] = bad
        spoiled = [n for n, v in self.buffers.items() if not is_finite(v.read_value())]
        if spoiled:
            found["buffers"] = spoiled
        return found

    def _is_bad(
        self, batch: Any, rows: Sequence[int], of: int, xla: bool, seen: dict[str, list[str]]
    ) -> bool | None:
        """Whether the micro-batch made of these rows alone is bad; None where it cannot be run.

        Where the whole batch's loss is bad, gradients alone are none: scaled, they may overflow anyway.
        """
        if xla:
            return None
        chosen = list(rows)
        for attempt in (chosen, chosen * 2):
            kept = self.core.snapshot.take()
            try:
                found = self._seen(*self._run(select(batch, attempt, of)))
                return bool("loss" in found if "loss" in seen else found)
            except (tf.errors.OpError, ValueError, IndexError):
                continue
            finally:
                self.core.snapshot.put_back(kept)
        return None

    # --- explaining ----------------------------------------------------------------------------------

    def _find(
        self,
        recorder: Recorder,
        loss: Any,
        gradients: Sequence[Any],
        seen: dict[str, list[str]],
        batch: Any,
        rows: int | None,
    ) -> tuple[Attribution, list[int] | None, bool]:
        """What is to blame; rows that look bad (empty: rows are not to blame; None: unknown); whether those
        are certain."""
        tail: list[Link] = []
        if "loss" in seen:
            ends = [recorder.value_of(loss).source]
            tail = [Link(what="loss", phase="loss")]
        elif "gradients" in seen:
            pairs = [p for p in zip(self.names, gradients, strict=True) if p[0] in set(seen["gradients"])]
            ends = [recorder.value_of(g).source for _, g in pairs]
            tail = [Link(what=f"gradient of {seen['gradients'][0]}", phase="backward")]
        else:
            ends = [recorder.value_in(self.buffers[n]).source for n in seen["buffers"]]
            tail = [Link(what=f"buffer {n}", phase="forward") for n in seen["buffers"]]
        calls, origins = _ancestry([e for e in ends if e is not None])
        guilty = sorted((c for c in calls if c.evidence is not None), key=lambda c: c.index)
        if origins and not any(c.phase != "backward" for c in guilty):
            return self._was_there(origins, calls, tail, batch, rows, recorder.constant)
        if not guilty:
            return self._not_reproduced(), [], True
        call = guilty[0]
        evidence = call.evidence
        assert evidence is not None
        message = sentence(call.op, evidence.event, evidence.operands, evidence.results)
        if self.step.scale > 1 and call.phase == "backward" and evidence.event == "overflow":
            message += f"; the loss is scaled by {self.step.scale:g}"
        code = CODES[evidence.event]
        suspects = evidence.rows
        if evidence.event == "zero-over-zero" and call.phase == "loss" and list(seen) == ["loss"]:
            code = "N511"
            message += "; every gradient is finite, so the weights were never in danger"
        if evidence.operands and evidence.operands[0].shape[:1] == (0,):
            suspects = []
        dtype = evidence.results[0].dtype if evidence.results else None
        return (
            Attribution(
                code=code,
                phase=call.phase,
                event=evidence.event,
                message=message,
                producer=Producer(
                    op=call.op, module=call.module, source=source(call.lines), time_index=call.time_index
                ),
                operands=evidence.operands,
                results=evidence.results,
                chain=_chain(calls, call, tail),
                remedy=remedy(call.op, evidence.event, call.module, dtype, self.step.scale, call.phase),
            ),
            None if call.phase == "backward" else suspects,
            False,
        )

    def _was_there(
        self,
        origins: list[Origin],
        calls: list[Call],
        tail: list[Link],
        batch: Any,
        rows: int | None,
        constant: Any,
    ) -> tuple[Attribution, list[int] | None, bool]:
        """A bad value was there before the first operation: in the data, a parameter, a buffer."""
        order = ("batch", "parameter", "buffer", "unknown")
        origin = min(origins, key=lambda o: order.index(o.kind))
        first = min(calls, key=lambda c: c.index, default=None)
        line = source(first.lines) if first else None
        chain = _chain(calls, first, tail)
        if origin.kind == "batch":
            tensor = next(t for n, t in named_tensors(batch) if (n or "batch") == origin.name)
            where = bad_along(tensor, 0, infinities=True) if rows == tensor.shape[0] else None
            count = f" in {_rows_text(where)} of {rows:,}" if where and rows else ""
            return (
                Attribution(
                    code=CODES["data"],
                    phase="data",
                    event="data",
                    message=f"Field '{origin.name}' of the batch is not finite{count}",
                    producer=Producer(parameter=origin.name),
                    operands=(statistics(origin.name, tensor),),
                    chain=chain,
                    remedy="Mend or leave out these rows; a data contract refuses them at load "
                    "(`missing`, `minimum`, `maximum` of the field).",
                ),
                where,
                where is not None,
            )
        if origin.kind == "unknown":
            op = first.op if first else None
            return (
                Attribution(
                    code=CODES["inherited"],
                    phase=first.phase if first else "forward",
                    event="inherited",
                    message=f"{op or 'An operation'} was given a constant that is NaN",
                    producer=Producer(op=op, module=first.module if first else None, source=line),
                    operands=() if constant is None else (statistics("constant", constant),),
                    chain=chain,
                    remedy="It is neither a variable nor of the batch: look where it is made.",
                ),
                [],
                True,
            )
        variable = next(v for o, v in self.variables.values() if o == origin)
        message = f"{origin.kind.capitalize()} '{origin.name}' was not finite before the step"
        looked_up = any(c.op in GATHERS for c in calls)
        entries = bad_along(variable.read_value(), 0, infinities=True)
        if looked_up and len(entries) < variable.shape[0]:
            message += f", in {_rows_text(entries)} of {variable.shape[0]:,}"
        return (
            Attribution(
                code=CODES["inherited"],
                phase="forward",
                event="inherited",
                message=message,
                producer=Producer(
                    op=first.op if first else None,
                    module=origin.name.rpartition(".")[0],
                    parameter=origin.name,
                    source=line,
                ),
                operands=(statistics(origin.name, variable.read_value()),),
                chain=chain,
                remedy=f"Go back to a checkpoint in which '{origin.name}' is finite. `guard: {{watch: [loss, "
                "gradients, buffers, parameters]}` stops at the step that spoils a parameter.",
            ),
            None if looked_up else [],  # rows that look it up are bad, and others are not
            True,
        )

    def _optimizer(self) -> Attribution | None:
        """What the optimizer's own step makes of finite gradients; None where all stays finite."""
        core = self.core
        updates = core.updates
        values = [v._value for v in updates.parameters]
        kept = Snapshot([*values, *updates.variables(), *core.snapshot.variables])
        before = kept.take()
        try:
            _, gradients = core._compute(self.step.forward, self.step.batches)
            present = [g for g in gradients if g is not None]
            if not all(is_finite(g) for g in present):
                return None
            core._update(gradients, tf.add_n([tf.nn.l2_loss(tf.cast(g, tf.float32)) for g in present]))
            slots = [(v.path, v._value) for v in updates.optimizer.variables]
            for name, value in [*zip(self.names, values, strict=True), *slots]:
                if value.dtype.is_floating and not is_finite(value.read_value()):
                    optimizer = type(updates.optimizer).__name__
                    what = f"made '{name}' not finite, of gradients that are"
                    return Attribution(
                        code=CODES["optimizer"],
                        phase="optimizer",
                        event="optimizer",
                        message=f"{optimizer} {what}",
                        producer=Producer(op=optimizer, module=name.rpartition(".")[0], parameter=name),
                        operands=tuple(
                            statistics(f"gradient of {n}", g)
                            for n, g in zip(self.names, gradients, strict=True)
                            if g is not None and n == name
                        ),
                        results=(statistics(name, value.read_value()),),
                        remedy="Clip gradients (`trainer.clip_norm`), lower the learning rate, or keep the "
                        "state in a wider format (`precision: {state: float64}`).",
                    )
            return None
        finally:
            kept.put_back(before)

    def _not_reproduced(self) -> Attribution:
        step = self.step
        seen = ", ".join(step.verdict.seen) or "the step"
        return Attribution(
            code=CODES["not-reproduced"],
            phase="forward" if "loss" in step.verdict.seen else "backward",
            event="not-reproduced",
            message=f"The guard saw NaN or infinity in {seen} of the compiled step; run eagerly it is finite",
            remedy="Compiled and eager code disagree, or an operation is not deterministic: train with "
            "`trainer.compile=false` and `trainer.deterministic=true`; where it stays, suspect the device.",
            reproduced=False,
        )


def _ancestry(ends: Sequence[Call | Origin]) -> tuple[list[Call], list[Origin]]:
    """Everything that bad values came through, and what was bad from the start."""
    calls: dict[int, Call] = {}
    origins: list[Origin] = []
    todo = list(ends)
    while todo:
        one = todo.pop()
        if isinstance(one, Origin):
            if one not in origins:
                origins.append(one)
        elif one.index not in calls:
            calls[one.index] = one
            todo += one.parents
    return sorted(calls.values(), key=lambda c: c.index), origins


def _chain(calls: Sequence[Call], first: Call | None, tail: list[Link]) -> tuple[Link, ...]:
    links = [
        Link(what=c.op, module=c.module, phase=_phase(c), source=source(c.lines))
        for c in calls
        if c is not first and c.op not in MOVES and c.op != "ReadVariableOp"
    ]
    links += tail
    return tuple(links if len(links) <= _LINKS else [*links[: _LINKS // 2], *links[-_LINKS // 2 :]])


def _phase(call: Call) -> Phase:
    return call.phase


def _rows_text(rows: Sequence[int]) -> str:
    shown = ", ".join(str(r) for r in rows[:5])
    more = f" and {len(rows) - 5:,} more" if len(rows) > 5 else ""
    return f"row{'s' if len(rows) != 1 else ''} {shown}{more}"
