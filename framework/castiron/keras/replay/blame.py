"""From what was recorded of a bad step to what is to blame for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from castiron.keras.replay.calls import ASSIGNS, GATHERS, MOVES, Call, Origin
from castiron.keras.replay.explain import remedy, sentence
from castiron.keras.replay.recorder import Recorder
from castiron.keras.replay.step import Ends, Seen, StepVariables
from castiron.keras.replay.values import bad_along, named_tensors, statistics
from castiron.training.event_words import CODES, bad_field, rows_text
from castiron.training.incident import Attribution, Link, Producer
from castiron.training.source_lines import source

AGAINST_OPTIMIZER = (
    "Clip gradients (`trainer.clip_norm`), lower the learning rate, or keep the state in a wider format "
    "(`precision: {state: float64}`)."
)
_LINKS = 10


@dataclass(frozen=True, slots=True)
class Blame:
    """What is to blame, and which rows may be."""

    found: Attribution | None
    """None: nothing that was recorded explains it."""
    suspects: list[int] | None = None
    """Rows that look bad; empty: rows are not to blame; None: unknown."""
    certain: bool = False
    """Whether those are the ones."""


class Recording:
    """A step that was recorded, and what was bad after it.

    Args:
        rows: of the batch.
        scale: the loss scale.
    """

    def __init__(
        self, recorder: Recorder, held: StepVariables, batch: Any, rows: int | None, scale: float
    ) -> None:
        self._recorder, self._held = recorder, held
        self._batch, self._rows, self._scale = batch, rows, scale

    def blame(self, seen: Seen, ends: Ends) -> Blame:
        """What is to blame for what was seen."""
        calls, origins = _ancestry(ends[0])
        guilty = [c for c in calls if c.evidence is not None]
        if origins and not any(c.phase in ("forward", "loss") for c in guilty):
            return self._was_there(origins, calls, ends[1])
        if not guilty:
            return Blame(None, [], True)
        call = guilty[0]
        chain = _chain(calls, call, ends[1])
        if call.optimizer is not None:
            return Blame(self._of_optimizer(call, calls, chain))
        return self._of_operation(call, seen, chain)

    def _of_operation(self, call: Call, seen: Seen, chain: tuple[Link, ...]) -> Blame:
        evidence = call.evidence
        assert evidence is not None
        message = sentence(call.op, evidence.event, evidence.operands, evidence.results)
        if self._scale > 1 and call.phase == "backward" and evidence.event == "overflow":
            message += f"; the loss is scaled by {self._scale:g}"
        code = CODES[evidence.event]
        suspects = evidence.rows
        if evidence.event == "zero-over-zero" and call.phase == "loss" and list(seen) == ["loss"]:
            code = "N511"
            message += "; every gradient is finite, so the weights were never in danger"
        if evidence.operands and evidence.operands[0].shape[:1] == (0,):
            suspects = []
        dtype = evidence.results[0].dtype if evidence.results else None
        found = Attribution(
            code=code,
            phase=call.phase,
            event=evidence.event,
            message=message,
            producer=Producer(
                op=call.op, module=call.module, source=source(call.lines), time_index=call.time_index
            ),
            operands=evidence.operands,
            results=evidence.results,
            chain=chain,
            remedy=remedy(call.op, evidence.event, call.module, dtype, self._scale, call.phase),
        )
        return Blame(found, None if call.phase in ("backward", "optimizer") else suspects)

    def _of_optimizer(self, call: Call, calls: Sequence[Call], chain: tuple[Link, ...]) -> Attribution:
        """An operation within an optimizer's `apply`: gradients were finite."""
        evidence = call.evidence
        assert evidence is not None
        said = sentence(call.op, evidence.event, evidence.operands, evidence.results)
        spoiled = next((n for n, v in self._bad_variables() if v is not None), None)
        made = f"'{spoiled}'" if spoiled else "a result"
        return Attribution(
            code=CODES["optimizer"],
            phase="optimizer",
            event="optimizer",
            message=f"{call.optimizer} made {made} not finite, of gradients that are: {said}",
            producer=Producer(
                op=(call.optimizer or "").partition(" ")[0],
                module=None if spoiled is None else spoiled.rpartition(".")[0],
                parameter=spoiled,
                source=source(call.lines),
            ),
            operands=evidence.operands,
            results=evidence.results,
            chain=chain,
            remedy=AGAINST_OPTIMIZER,
        )

    def _bad_variables(self) -> list[tuple[str, Any]]:
        return [
            (origin.name, variable)
            for origin, variable in self._held.known.values()
            if self._recorder.is_bad_in(variable) and origin.kind in ("parameter", "state")
        ]

    # --- what was there before -----------------------------------------------------------------------

    def _was_there(self, origins: list[Origin], calls: list[Call], tail: list[Link]) -> Blame:
        """A bad value was there before the first operation: in the data, a parameter, a buffer."""
        order = ("batch", "parameter", "buffer", "state", "unknown")
        origin = min(origins, key=lambda o: order.index(o.kind))
        first = min(calls, key=lambda c: c.index, default=None)
        chain = _chain(calls, first, tail)
        if origin.kind == "batch":
            return self._of_data(origin, chain)
        if origin.kind == "unknown":
            return self._of_constant(first, chain)
        return self._of_variable(origin, calls, first, chain)

    def _of_data(self, origin: Origin, chain: tuple[Link, ...]) -> Blame:
        rows = self._rows
        tensor = next(t for n, t in named_tensors(self._batch) if (n or "batch") == origin.name)
        where = bad_along(tensor, 0, infinities=True) if rows == tensor.shape[0] else None
        found = bad_field(origin.name, where, rows, statistics(origin.name, tensor), chain)
        return Blame(found, where, where is not None)

    def _of_constant(self, first: Call | None, chain: tuple[Link, ...]) -> Blame:
        op = first.op if first else None
        constant = self._recorder.constant
        found = Attribution(
            code=CODES["inherited"],
            phase=first.phase if first else "forward",
            event="inherited",
            message=f"{op or 'An operation'} was given a constant that is NaN",
            producer=Producer(
                op=op, module=first.module if first else None, source=source(first.lines) if first else None
            ),
            operands=() if constant is None else (statistics("constant", constant),),
            chain=chain,
            remedy="It is neither a variable nor of the batch: look where it is made.",
        )
        return Blame(found, [], True)

    def _of_variable(
        self, origin: Origin, calls: list[Call], first: Call | None, chain: tuple[Link, ...]
    ) -> Blame:
        value = self._held.value(origin).read_value()
        state = origin.kind == "state"
        kind = "Optimizer state" if state else origin.kind.capitalize()
        message = f"{kind} '{origin.name}' was not finite before the step"
        looked_up = any(c.op in GATHERS for c in calls)
        entries = bad_along(value, 0, infinities=True)
        if looked_up and len(entries) < value.shape[0]:
            message += f", in {rows_text(entries)} of {value.shape[0]:,}"
        found = Attribution(
            code=CODES["inherited"],
            phase="optimizer" if state else "forward",
            event="inherited",
            message=message,
            producer=Producer(
                op=first.op if first else None,
                module=None if state else origin.name.rpartition(".")[0],
                parameter=origin.name,
                source=source(first.lines) if first else None,
            ),
            operands=(statistics(origin.name, value),),
            chain=chain,
            remedy=f"Go back to a checkpoint in which '{origin.name}' is finite. `guard: {{watch: [loss, "
            f"gradients, buffers, {'optimizer' if state else 'parameters'}]}}` stops at the step that spoils "
            f"{'it' if state else 'a parameter'}.",
        )
        # Rows that look it up are bad, and others are not.
        return Blame(found, None if looked_up else [], True)


def _ancestry(ends: Sequence[Call | Origin]) -> tuple[list[Call], list[Origin]]:
    """Everything that bad values came through, first to last, and what was bad from the start."""
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
    links: list[Link] = []
    for call in calls:
        if call is first or call.op in MOVES or call.op in ASSIGNS or call.op == "ReadVariableOp":
            continue
        link = Link(
            what=call.optimizer or call.op,
            module=call.module,
            phase=call.phase,
            source=source(call.lines),
        )
        if call.optimizer is None or link not in links:
            links.append(link)
    links += tail
    return tuple(links if len(links) <= _LINKS else [*links[: _LINKS // 2], *links[-_LINKS // 2 :]])
