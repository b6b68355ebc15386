"""Which operation made which tensor, and whether it was good: the flow of values through one forward pass."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor

from castiron.torch.replay.values import State, has_infinite_number, is_finite, state_of, tensors_in
from castiron.training.source_lines import Line


class Origin(NamedTuple):
    """What a tensor is that was there before the first operation."""

    kind: Literal["parameter", "buffer", "batch"]
    name: str


@dataclass(slots=True, eq=False)
class Value:
    """A tensor as it was at one moment."""

    state: State
    maker: Call | None
    """The call whose result it is; None for what was there before: parameters, buffers, the batch."""
    origin: Origin | None = None


@dataclass(slots=True, eq=False)
class Call:
    """One operation that ran."""

    index: int
    op: str
    operands: list[Value]
    results: list[Value] = field(default_factory=list)
    module: str | None = None
    """Path of the innermost module that it ran in; None outside."""
    within: int = 0
    """Which call of a module that was."""
    in_loss: bool = False
    """Whether that is one of torch's loss modules."""
    lines: tuple[Line, ...] = ()
    evidence: Any = None
    """What was kept of its numbers, where it may be to blame."""

    @property
    def is_bad(self) -> bool:
        """Whether a result is bad."""
        return any(r.state is State.BAD for r in self.results)

    @property
    def bad_operands(self) -> list[Value]:
        return [v for v in self.operands if v.state is State.BAD]

    @property
    def produces(self) -> bool:
        """Whether a result is bad though every operand is good."""
        return self.is_bad and not self.bad_operands


class Tracker:
    """Follows tensors by identity and version, so that what is written in place is seen as well."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._known: dict[int, tuple[weakref.ref[Tensor], int, Value]] = {}
        self._writer: dict[int, Call] = {}
        """Address of a storage → the last call that wrote into it in place."""

    def declare(self, tensor: Tensor, origin: Origin, state: State) -> None:
        """A tensor that was there before the first operation."""
        self._remember(tensor, Value(state, None, origin))

    def value(self, tensor: Tensor) -> Value:
        """The value of a tensor now."""
        entry = self._known.get(id(tensor))
        if entry is not None and entry[0]() is tensor:
            if entry[1] == _version(tensor):
                return entry[2]
            before = entry[2]
            maker = self._writer.get(_address(tensor)) or before.maker
            return self._remember(tensor, Value(state_of(tensor, masks=True), maker, before.origin))
        # a view made where nobody looked, or a constant: minus infinity in it is a mask
        maker = self._writer.get(_address(tensor))
        return self._remember(tensor, Value(state_of(tensor, masks=True), maker))

    def begin(self, op: str, arguments: Any) -> tuple[Call, list[tuple[Tensor, int]]]:
        """An operation is about to run on these arguments."""
        tensors = list(tensors_in(arguments))
        call = Call(len(self.calls), op, [self.value(t) for t in tensors])
        return call, [(t, _version(t)) for t in tensors]

    def end(self, call: Call, before: list[tuple[Tensor, int]], arguments: Any, results: Any) -> list[Tensor]:
        """It ran. → the tensors it made or wrote into."""
        made: list[Tensor] = []
        written = [t for t, version in before if _version(t) != version or self._was_spoiled(t)]
        for tensor in (*written, *tensors_in(results)):
            if any(tensor is m for m in made):
                continue
            made.append(tensor)
            if any(tensor is t for t in written):
                self._writer[_address(tensor)] = call
            elif (entry := self._known.get(id(tensor))) is not None and entry[0]() is tensor:
                continue  # handed through as it is
            state = self._judge(call, tensor, arguments)
            call.results.append(self._remember(tensor, Value(state, call)))
        if made:
            self.calls.append(call)
        return made

    def _was_spoiled(self, tensor: Tensor) -> bool:
        """Whether a good buffer is bad by now: batch_norm writes its statistics without a new version."""
        entry = self._known.get(id(tensor))
        if entry is None or entry[2].origin is None or entry[2].origin.kind != "buffer":
            return False
        return entry[2].state is State.GOOD and not is_finite(tensor)

    def _judge(self, call: Call, tensor: Tensor, arguments: Any) -> State:
        asked = any(v.state is State.MASKED for v in call.operands) or has_infinite_number(arguments)
        if not asked and not call.operands:
            asked = True  # torch.tensor([-inf]): made from numbers of the user's
        return state_of(tensor, masks=asked)

    def _remember(self, tensor: Tensor, value: Value) -> Value:
        self._known[id(tensor)] = (weakref.ref(tensor), _version(tensor), value)
        return value


def ancestry(start: list[Value]) -> tuple[list[Call], list[Value]]:
    """Back along bad values. → the calls that made them, latest first, and those that no call made."""
    calls: dict[int, Call] = {}
    origins: dict[int, Value] = {}
    waiting = [v for v in start if v.state is State.BAD]
    while waiting:
        value = waiting.pop()
        if value.maker is None:
            origins[id(value)] = value
        elif value.maker.index not in calls:
            calls[value.maker.index] = value.maker
            waiting.extend(value.maker.bad_operands)
    return sorted(calls.values(), key=lambda c: -c.index), list(origins.values())


def path_from(producer: Call, to: list[Value]) -> list[Call]:
    """A way that bad values took from the producer to these values: calls in the order they ran."""
    calls, _ = ancestry(to)
    reached: dict[int, Call | None] = {producer.index: None}
    for call in sorted(calls, key=lambda c: c.index):
        for value in call.bad_operands:
            if value.maker is not None and value.maker.index in reached:
                reached.setdefault(call.index, value.maker)
                break
    ends = [v.maker for v in to if v.maker is not None and v.maker.index in reached]
    way: list[Call] = []
    at: Call | None = ends[0] if ends else None
    while at is not None:
        way.append(at)
        at = reached[at.index]
    return way[::-1]


def ancestors(call: Call) -> set[int]:
    """Indices of all calls whose results led to this one."""
    seen: set[int] = set()
    waiting = [call]
    while waiting:
        for value in waiting.pop().operands:
            if value.maker is not None and value.maker.index not in seen:
                seen.add(value.maker.index)
                waiting.append(value.maker)
    return seen


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _address(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # sparse
        return id(tensor)
