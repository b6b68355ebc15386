"""What a trace holds: values, calls of torch's functions, and operations of torch's dispatcher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch

from castiron.diagnostics import Finding
from castiron.torch.dtypes import dtype_name
from castiron.training.audit import OpRecord, Phase, TensorFormat
from castiron.training.incident import Source
from castiron.training.source_lines import Line, source


class Origin(NamedTuple):
    """What a tensor is that was there before the first operation."""

    kind: Literal["parameter", "buffer", "attribute", "batch", "outside"]
    name: str
    maximum: float | None = None
    """Largest magnitude, of integers of the batch."""

    def __str__(self) -> str:
        if self.kind == "batch":
            return f"{self.name} of the batch" if self.name else "the batch"
        if self.kind == "outside":
            return "a tensor made outside of the model (from NumPy, or kept in a variable)"
        return f"{self.kind} '{self.name}'"


@dataclass(slots=True, eq=False, repr=False)
class Value:
    """A tensor, as an operation gave it or as it was before."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    maker: Op | None = None
    origin: Origin | None = None
    consumers: list[Op] = field(default_factory=list)
    kept: Any = None
    """The tensor itself while a trace of fake ones runs: no other can then have its id."""

    @property
    def is_float(self) -> bool:
        return self.dtype.is_floating_point

    @property
    def format(self) -> TensorFormat:
        return TensorFormat(dtype=dtype_name(self.dtype), shape=self.shape)


@dataclass(slots=True, eq=False, repr=False)
class Call:
    """A function of torch's that Python called: several operations of the dispatcher may run in it."""

    name: str
    lines: tuple[Line, ...]
    by_user: bool
    """Whether the line that calls it is the user's own (not a framework's on his behalf)."""
    autocast: torch.dtype | None
    """What autocast computed in when it was called; None where it was off."""
    shapes: tuple[tuple[int, ...], ...] = ()
    """Shapes of its tensors, in order."""


@dataclass(slots=True, eq=False, repr=False)
class Op:
    """One operation of the dispatcher."""

    index: int
    func: Any
    name: str
    phase: Phase
    module: str | None
    call: Call | None
    operands: list[Value]
    results: list[Value]
    scalars: tuple[float, ...] = ()
    dtype_argument: torch.dtype | None = None
    forward: Op | None = None
    """For backward: the operation of the forward pass."""
    flops: int = 0
    in_place: bool = False
    lines_: tuple[Line, ...] = ()

    @property
    def base(self) -> str:
        """Its name without the underscore of in-place forms."""
        return self.name.rstrip("_")

    @property
    def lines(self) -> tuple[Line, ...]:
        if self.forward is not None:
            return self.forward.lines
        return self.call.lines if self.call is not None and self.call.lines else self.lines_

    @property
    def source(self) -> Source | None:
        return source(self.lines)

    @property
    def floats(self) -> list[Value]:
        return [v for v in self.operands if v.is_float]

    @property
    def computes_in(self) -> torch.dtype | None:
        """The widest floating-point format among its operands; None for integers."""
        best: torch.dtype | None = None
        for v in self.operands or self.results:
            if v.is_float and (best is None or v.dtype.itemsize > best.itemsize):
                best = v.dtype
        return best

    @property
    def title(self) -> str:
        """What the user calls it: the function where there is one, else the dispatcher's name."""
        return self.call.name if self.call is not None else self.name

    def record(self) -> OpRecord:
        """As plain data."""
        size = sum(_numel(v.shape) * v.dtype.itemsize for v in (*self.operands, *self.results))
        computes = self.computes_in
        return OpRecord(
            op=self.name,
            phase=self.phase,
            module=self.module,
            source=self.source,
            inputs=tuple(v.format for v in self.operands),
            outputs=tuple(v.format for v in self.results),
            format=dtype_name(computes) if computes is not None else None,
            flops=self.flops,
            bytes=size,
        )


@dataclass(slots=True, eq=False, repr=False)
class LayerOutput:
    """What a layer handed on."""

    path: str
    dtypes: tuple[torch.dtype, ...]
    values: tuple[Value, ...]
    lines: tuple[Line, ...]


@dataclass(slots=True, eq=False, repr=False)
class Failure:
    """Where a trace stopped."""

    error: BaseException
    phase: Phase
    module: str | None
    call: str | None
    operands: tuple[TensorFormat, ...]
    lines: tuple[Line, ...]


@dataclass(eq=False, repr=False)
class Trace:
    """Everything that one traced step did."""

    ops: list[Op] = field(default_factory=list)
    outputs: list[LayerOutput] = field(default_factory=list)
    calls: list[tuple[Call, str | None, Phase]] = field(default_factory=list)
    failure: Failure | None = None
    kind: Literal["fake", "real"] = "fake"
    batch_size: int | None = None
    loss: Value | None = None
    results: tuple[Value, ...] = ()
    """What the model handed on."""
    has_loss: bool = False
    of_shapes: tuple[Finding, ...] = ()
    """What was found at the boundaries whose shapes are declared."""

    def of(self, *phases: Phase) -> Iterator[Op]:
        return (op for op in self.ops if op.phase in phases)


def consumers(value: Value, through: Sequence[str]) -> list[Op]:
    """The operations that use a value, seen through those of these names."""
    found: list[Op] = []
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        for op in waiting.pop().consumers:
            if op.index in seen:
                continue
            seen.add(op.index)
            if op.base in through:
                waiting.extend(op.results)
            else:
                found.append(op)
    return found


def _numel(shape: tuple[int, ...]) -> int:
    n = 1
    for extent in shape:
        n *= extent
    return n
