"""What a traced step holds: values, and operations of TensorFlow's graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from castiron.formats import FORMATS
from castiron.training.audit import OpRecord, Phase, TensorFormat
from castiron.training.incident import Source
from castiron.training.source_lines import Line, source

Step = Literal["training", "evaluation", "inference"]
"""What a graph is of."""


class Origin(NamedTuple):
    """What a tensor is that was there before the first operation."""

    kind: Literal["parameter", "buffer", "batch", "outside"]
    name: str
    maximum: float | None = None
    """Largest magnitude, of integers of the batch."""

    def __str__(self) -> str:
        if self.kind == "batch":
            return f"{self.name} of the batch" if self.name else "the batch"
        if self.kind == "outside":
            return "a tensor made outside of the step (from NumPy, or kept in a variable)"
        return f"{self.kind} '{self.name}'"


@dataclass(slots=True, eq=False, repr=False)
class Value:
    """A tensor of a graph. A tensor that a function is given is the same value inside of it."""

    dtype: str
    shape: tuple[int, ...]
    """-1 where it is known only when the step runs."""
    maker: Op | None = None
    origin: Origin | None = None
    consumers: list[Op] = field(default_factory=list)
    same: tuple[Value, ...] = ()
    """Of a loop or a branch: what it is inside."""

    @property
    def is_float(self) -> bool:
        return self.dtype in FORMATS and FORMATS[self.dtype].is_float

    @property
    def size(self) -> int:
        n = 1
        for extent in self.shape:
            n *= max(extent, 1)
        return n

    @property
    def format(self) -> TensorFormat:
        return TensorFormat(dtype=self.dtype, shape=self.shape)


@dataclass(frozen=True, slots=True)
class Call:
    """The function that made an operation."""

    name: str
    """The public function that was called: `softmax`, `cast`; empty where it cannot be told."""
    lines: tuple[Line, ...]
    """The user's lines, innermost first."""
    by_user: bool
    """Whether the user's own line called it, and not a layer of Keras's, a loss or castiron."""
    variable: bool = False
    """Whether it is how Keras reads a variable: autocast."""


@dataclass(slots=True, eq=False, repr=False)
class Op:
    """One operation of a graph, or of a function in it."""

    index: int
    node: Any
    name: str
    """Its type: `MatMul`."""
    phase: Phase
    module: str | None
    call: Call
    operands: list[Value]
    results: list[Value]
    times: int = 1
    """How often it runs: the steps of the loops around it, where they are known."""
    forward: Op | None = None
    """For backward: the operation of the forward pass."""
    flops: int = 0

    @property
    def title(self) -> str:
        return self.name

    @property
    def floats(self) -> list[Value]:
        """Its floating-point operands."""
        return [v for v in self.operands if v.is_float]

    @property
    def lines(self) -> tuple[Line, ...]:
        if self.forward is not None and not self.call.lines:
            return self.forward.call.lines
        return self.call.lines

    @property
    def source(self) -> Source | None:
        return source(self.lines)

    def record(self) -> OpRecord:
        """As plain data."""
        numbers = [v for v in (*self.operands, *self.results) if v.dtype not in ("resource", "variant")]
        floats = [v.dtype for v in (self.floats or [v for v in self.results if v.is_float])]
        widest = max(floats, key=lambda d: FORMATS[d].bits, default=None)
        return OpRecord(
            op=self.name,
            phase=self.phase,
            module=self.module,
            source=self.source,
            inputs=tuple(v.format for v in self.operands),
            outputs=tuple(v.format for v in self.results),
            format=widest,
            flops=self.flops * self.times,
            bytes=sum(v.size * _width(v.dtype) for v in numbers) * self.times,
        )


@dataclass(slots=True, repr=False)
class LayerOutput:
    """What a layer handed on."""

    path: str
    values: list[Value]
    lines: tuple[Line, ...]


@dataclass(slots=True, repr=False)
class Trace:
    """What one step does."""

    ops: list[Op] = field(default_factory=list)
    outputs: list[LayerOutput] = field(default_factory=list)
    results: list[Value] = field(default_factory=list)
    """What the model gave."""
    loss: Value | None = None
    batch_size: int | None = None
    step: Step = "training"

    def of(self, *phases: Phase) -> Iterator[Op]:
        """Operations of these phases, in order."""
        return (op for op in self.ops if op.phase in phases)


def consumers(value: Value, through: Sequence[str] | frozenset[str]) -> Iterator[Op]:
    """Operations that use a value, past those that only hand it on."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        current = waiting.pop()
        for op in current.consumers:
            if id(op) in seen:
                continue
            seen.add(id(op))
            if op.name in through:
                waiting.extend(r for r in op.results if r.dtype == value.dtype)
            else:
                yield op


def _width(dtype: str) -> int:
    if dtype in FORMATS:
        return max(FORMATS[dtype].bits // 8, 1)
    return 1 if dtype == "bool" else 4
