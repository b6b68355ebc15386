"""What every check of a trace needs: the plan around an operation, and where a format came from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from castiron.diagnostics import Place
from castiron.keras.audit.kernels import CASTS, FREE, HANDS_ON, ISLANDS, PROMOTES
from castiron.keras.audit.records import Call, Op, Trace, Value
from castiron.keras.dtypes import tensorflow_name
from castiron.policy import Plan, PlanRow, PrecisionPolicy
from castiron.policy.plan import row_around
from castiron.training.source_lines import place

RootKind = Literal["batch", "parameter", "buffer", "outside", "constant", "cast", "framework", "promotion"]
CastKind = Literal["user", "promotion", "framework"]


@dataclass(frozen=True, slots=True)
class Root:
    """Where a tensor's format was decided."""

    kind: RootKind
    value: Value
    op: Op | None = None

    @property
    def where(self) -> str:
        """File and line; empty where there is none."""
        found = self.op.source if self.op is not None else None
        return str(found) if found else ""

    def __str__(self) -> str:
        if self.value.origin is not None:
            return str(self.value.origin)
        assert self.op is not None
        made = f" at {self.where}" if self.where else ""
        if self.kind == "constant":
            return f"a tensor that {self.op.title} makes{made}"
        if self.kind == "cast":
            return f"a cast{made}"
        return f"the result of {self.op.title}{made}"


class Context:
    """A trace with the plan that it is held against."""

    def __init__(
        self, trace: Trace, plan: Plan, layers: dict[str, Any], *, as_is: bool = False, jit: bool = False
    ) -> None:
        self.jit = jit
        """Whether XLA compiles the step."""
        self.trace, self.plan, self.layers, self.as_is = trace, plan, layers, as_is
        self.policy: PrecisionPolicy = plan.policy
        self._rows = {row.path: row for row in plan.rows}
        self._roots: dict[int, tuple[Root, ...]] = {}

    def row(self, module: str | None) -> PlanRow | None:
        """The row of the layer that an operation runs in; of the nearest around it."""
        return row_around(self._rows, module)

    @cached_property
    def declared(self) -> frozenset[str]:
        """Formats that layers may store, compute and hand on in, by TensorFlow's names."""
        names = {n for row in self.plan.rows for n in (row.param, row.compute, row.output, row.buffers)}
        p = self.policy
        return frozenset(tensorflow_name(n) for n in names | {p.param, p.compute, p.output, p.buffers})

    @cached_property
    def allows_float64(self) -> bool:
        """Whether float64 is declared for anything that is traced."""
        return "float64" in self.declared or "float64" in (self.policy.loss, self.policy.accumulate)

    def place(self, op: Op) -> Place:
        """Where an operation is."""
        return place(op.lines, op.module, op.title, op.phase)

    def cast(self, op: Op) -> CastKind | None:
        """Who casts, where an operation is a cast from one floating-point format to another; else None."""
        if op.name != "Cast" or not op.operands or not op.results:
            return None
        if not (op.operands[0].is_float and op.results[0].is_float):
            return None
        if op.operands[0].dtype == op.results[0].dtype:
            return None
        return cast_kind(op.call)

    # --- where a format came from ------------------------------------------------------------------

    def roots(self, value: Value) -> tuple[Root, ...]:
        """Where the format of a value was decided: back along operations that had it already."""
        known = self._roots.get(id(value))
        if known is None:
            known = self._roots[id(value)] = tuple(self._walk(value))
        return known

    def _walk(self, start: Value) -> list[Root]:
        found: list[Root] = []
        seen: set[int] = set()
        waiting = [start]
        while waiting and len(found) < 16:
            value = waiting.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            if value.same:
                waiting.extend(value.same)
                continue
            if value.origin is not None:
                found.append(Root(value.origin.kind, value))
                continue
            op = value.maker
            if op is None or any(v.dtype == "variant" for v in op.operands):
                continue  # a list of tensors: what went in was told there
            same = [v for v in op.operands if v.dtype == value.dtype]
            if same:
                waiting.extend([v for v in same if v.shape] or same)
            else:
                found.append(Root(self._kind(op), value, op))
        return found

    @staticmethod
    def _kind(op: Op) -> RootKind:
        if op.name == "Cast":
            kind = cast_kind(op.call)
            return "cast" if kind == "user" else kind
        if not op.floats:
            return "constant" if op.call.by_user else "framework"
        return "framework"

    def is_island(self, op: Op) -> bool:
        """Whether the policy keeps an operation of this kind wide."""
        kind = ISLANDS.get(op.name)
        if kind is None:
            return False
        return kind == "loss" or getattr(self.policy.islands, kind) is not None


def cast_kind(call: Call) -> CastKind:
    """Who casts: the user's own line, a function of keras.ops that takes several formats, or a framework."""
    if call.variable or not call.by_user:
        return "framework"
    if call.name in CASTS:
        return "user"
    return "promotion" if call.name in PROMOTES else "framework"


def counted(trace: Trace) -> list[Op]:
    """Operations that compute, and do not only move numbers."""
    return [
        op
        for op in trace.of("forward", "loss", "backward")
        if op.name not in FREE and any(v.dtype not in ("resource", "variant") for v in op.results)
    ]


def maker_past_moves(value: Value) -> Op | None:
    """The operation that made a value, past those that only hand it on."""
    while value.maker is not None and value.maker.name in HANDS_ON and value.maker.operands:
        same = [v for v in value.maker.operands if v.dtype == value.dtype]
        if not same:
            return value.maker
        value = same[0]
    return value.maker
