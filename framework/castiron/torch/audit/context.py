"""What every check of a trace needs: the plan around an operation, and where a format came from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from castiron.diagnostics import Place
from castiron.policy import Plan, PlanRow, PrecisionPolicy
from castiron.policy.plan import row_around
from castiron.torch.audit.kernels import CASTS, ISLANDS, USER_CASTS, promotes
from castiron.torch.audit.records import Op, Trace, Value
from castiron.torch.boundaries import ambient_dtype
from castiron.torch.dtypes import torch_dtype
from castiron.training.source_lines import place

RootKind = Literal[
    "batch", "parameter", "buffer", "attribute", "outside", "constant", "cast", "framework", "promotion"
]


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
            return f"a cast by .{self.op.title}(){made}"
        return f"the result of {self.op.title}{made}"


class Context:
    """A trace with the plan that it is held against."""

    def __init__(self, trace: Trace, plan: Plan, *, as_is: bool = False, device: str = "cpu") -> None:
        self.trace, self.plan, self.as_is, self.device = trace, plan, as_is, device
        self.policy: PrecisionPolicy = plan.policy
        self.ambient = None if as_is else ambient_dtype(plan)
        self._rows = {row.path: row for row in plan.rows}
        self._roots: dict[int, tuple[Root, ...]] = {}

    def row(self, module: str | None) -> PlanRow | None:
        """The row of the layer that an operation runs in; of the nearest around it."""
        return row_around(self._rows, module)

    @cached_property
    def declared(self) -> frozenset[torch.dtype]:
        """Formats that layers may store, compute and hand on in."""
        names = {n for row in self.plan.rows for n in (row.param, row.compute, row.output, row.buffers)}
        p = self.policy
        names |= {p.param, p.compute, p.output, p.buffers}
        return frozenset(torch_dtype(n) for n in names)

    @cached_property
    def allows_float64(self) -> bool:
        """Whether float64 is declared for anything that is traced."""
        return torch.float64 in self.declared or "float64" in (self.policy.loss, self.policy.accumulate)

    def place(self, op: Op) -> Place:
        """Where an operation is."""
        return place(op.lines, op.module, op.title if op.phase != "backward" else op.name, op.phase)

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
            if value.origin is not None:
                found.append(Root(value.origin.kind, value))
                continue
            op = value.maker
            assert op is not None
            same = [v for v in op.operands if v.dtype is value.dtype]
            if same and promotes(op.func, op.base) and promoted(op) is not None:
                found.append(Root("promotion", value, op))
            elif same:
                dims = [v for v in same if v.shape] or same
                waiting.extend(dims)
            else:
                found.append(Root(self._kind(op), value, op))
        return found

    @staticmethod
    def _kind(op: Op) -> RootKind:
        if op.name in CASTS and any(v.is_float for v in op.operands):
            return "cast" if is_users_cast(op) else "framework"
        floats = [v for v in op.operands if v.is_float]
        if not floats:
            return "constant"
        if op.dtype_argument is not None:
            return "cast"
        return "framework"

    def is_island(self, op: Op) -> bool:
        """Whether the policy keeps an operation of this kind wide."""
        kind = ISLANDS.get(op.base)
        if kind is None:
            return False
        return kind == "loss" or getattr(self.policy.islands, kind) is not None


def is_users_cast(op: Op) -> bool:
    """Whether the user's own line casts, and not autocast, a hook or a framework."""
    return op.call is not None and op.call.by_user and op.call.name in USER_CASTS


def promoted(op: Op) -> tuple[torch.dtype, torch.dtype] | None:
    """The narrowest and the widest format that meet in a promoting operation; None where all agree.

    As torch does it: among floating-point operands those with axes decide; scalars only where all are
    scalars, or all with axes are integers.
    """
    dims = {v.dtype for v in op.operands if v.is_float and v.shape}
    zeros = {v.dtype for v in op.operands if v.is_float and not v.shape}
    integers = any(not v.is_float and v.shape for v in op.operands)
    found = dims if dims else (zeros if not integers else set())
    if op.base == "where" and op.operands and not op.operands[0].is_float and not dims:
        found = zeros
    if len(found) < 2:
        return None
    ordered = sorted(found, key=lambda d: d.itemsize)
    return ordered[0], ordered[-1]
