"""Shapes that a recipe declares at the boundaries of its layers, axis by axis.

`"batch time -> batch time 128"` says what goes into a layer and what it hands on. A name is an axis whose
length is the same wherever the name stands in the step; a number is a length; `_` is any length, `...` any
axes. Several tensors are parted by commas. What is no tensor is not counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from castiron.diagnostics import Finding, Place, finding

ANY, REST = "_", "..."
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Boundary:
    """The axes of what goes in and comes out of a layer, tensor by tensor."""

    inputs: tuple[tuple[str, ...], ...]
    outputs: tuple[tuple[str, ...], ...]

    @classmethod
    def parse(cls, text: str) -> Boundary:
        """Read `"batch time, batch -> batch classes"`; without an arrow it is about outputs alone.

        Raises:
            ValueError: an axis is neither a name, a number, `_` nor `...`.
        """
        before, arrow, after = text.partition("->")
        return cls(_tensors(before) if arrow else (), _tensors(after if arrow else before))


@dataclass(slots=True)
class Axes:
    """Lengths of the axes that have been met, by name."""

    lengths: dict[str, int] = field(default_factory=dict)

    def agree(self, declared: Sequence[str], shape: Shape) -> bool:
        """Whether a shape is as declared; a name that is new takes the length that it has here."""
        axes = _spread(declared, len(shape))
        if axes is None:
            return False
        new: dict[str, int] = {}
        for axis, length in zip(axes, shape, strict=True):
            if axis == ANY or length < 0:  # open in a graph
                continue
            if axis.isdigit():
                if int(axis) != length:
                    return False
            elif self.lengths.get(axis, new.setdefault(axis, length)) != length:
                return False
        self.lengths.update((k, v) for k, v in new.items() if k not in self.lengths)
        return True

    def resolved(self, declared: Sequence[str]) -> str:
        """Declared axes with the lengths that are known: `[batch=16, time, 128]`."""
        known = (f"{a}={self.lengths[a]}" if a in self.lengths else a for a in declared)
        return f"[{', '.join(known)}]"

    def other_order(self, declared: Sequence[str], shape: Shape) -> str | None:
        """The declared axes in the order that a shape has them in; None where that is not the mistake."""
        if len(declared) != len(shape) or REST in declared or len(shape) > 6:
            return None
        known = [self.lengths.get(a, int(a) if a.isdigit() else None) for a in declared]
        if sum(n is not None for n in known) < 2:
            return None
        for order in itertools.permutations(range(len(declared))):
            if all(known[k] in (None, n) for k, n in zip(order, shape, strict=True)):
                return f"[{', '.join(declared[k] for k in order)}]"
        return None


def reduced_axis(before: Shape, after: Shape) -> int | None:
    """The one axis that an operation has reduced; None where it is none, or not to be told."""
    for k in range(len(before)):
        if after in (before[:k] + before[k + 1 :], (*before[:k], 1, *before[k + 1 :])) and before[k] > 1:
            return k
    return None


def wrong_length(before: Shape, summed: int, number: float, place: Place) -> Finding | None:
    """F341, where a sum over the axis `summed` of `before` is divided by the length of another."""
    others = [n for k, n in enumerate(before) if k != summed]
    if number == before[summed] or number not in others or number < 2:
        return None
    return finding(
        "F341",
        f"a sum over {before[summed]} numbers (axis {summed} of {list(before)}) is divided by "
        f"{number:g}, the length of another axis",
        place=place,
        expected=f"a division by {before[summed]}",
        received=f"{number:g}",
    )


def _tensors(text: str) -> tuple[tuple[str, ...], ...]:
    made = tuple(tuple(part.split()) for part in text.split(",") if part.strip())
    for axis in itertools.chain.from_iterable(made):
        if not (axis in (ANY, REST) or axis.isdigit() or axis.isidentifier()):
            raise ValueError(f"an axis is a name, a number, {ANY} or {REST}, and not '{axis}'")
    if any(tensor.count(REST) > 1 for tensor in made):
        raise ValueError(f"{REST} stands at most once in a tensor")
    return made


def _spread(declared: Sequence[str], n: int) -> list[str] | None:
    """As many axes as a shape has, `...` written out; None where they do not fit."""
    if REST not in declared:
        return list(declared) if len(declared) == n else None
    at = declared.index(REST)
    more = n - (len(declared) - 1)
    return [*declared[:at], *[ANY] * more, *declared[at + 1 :]] if more >= 0 else None
