"""Figures of differences between formats: by layer, over steps, and errors of products against theory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from castiron.health.drawing import INK, MUTED, PAPER, RULE, Canvas, shade

COLOURS = ("#0b4f8a", "#b3541e", "#1f7a4d", "#7a3fa0", "#a8324a", "#52606d")
_LABEL = 210
_ROWS = 60
_MARK = 2.5

Points = Sequence[tuple[float, float]]


def profile(
    title: str, layers: Sequence[str], sides: Mapping[str, Mapping[str, float]], marks: Mapping[str, str]
) -> Canvas:
    """A row per layer in the order of the pass, a dot per side: its relative norm, on a logarithmic scale.

    Args:
        layers: the rows.
        sides: side → layer → relative norm; what is 0 or missing has no dot.
        marks: side → the layer where it parts; its dot has a ring.
    """
    rows = list(layers)[:_ROWS]
    values = [v for side in sides.values() for n, v in side.items() if n in rows and 0 < v < math.inf]
    top, row = 46, 16
    made = Canvas(900, top + row * max(len(rows), 1) + 34, title)
    left, right = _LABEL, made.width - 30
    made.text(8, 18, title, size=13)
    _legend(made, sides, left, 36)
    if not values:
        made.text(left, top + 12, "no difference anywhere", MUTED)
        return made
    low, high = _decades(values)

    def at(value: float) -> float:
        return left + (math.log10(value) - low) / (high - low) * (right - left)

    bottom = top + row * len(rows)
    _powers(made, low, high, lambda e: (at(10.0**e), top - 4, at(10.0**e), bottom + 4), bottom + 18)
    for i, layer in enumerate(rows):
        y = top + row * i + row / 2
        made.line(left, y, right, y, "#eef2f6")
        made.text(left - 8, y + 4, _short(layer), INK, 10, "end")
        for (side, found), colour in zip(sides.items(), _colours(len(sides)), strict=True):
            value = found.get(layer, 0.0)
            if 0 < value < math.inf:
                if marks.get(side) == layer:
                    made.rect(at(value) - 6, y - 6, 12, 12, colour)
                    made.rect(at(value) - 4.5, y - 4.5, 9, 9, PAPER)
                made.rect(at(value) - _MARK, y - _MARK, 2 * _MARK, 2 * _MARK, colour)
    if len(layers) > _ROWS:
        made.text(right, 36, f"the first {_ROWS} of {len(layers)} layers", MUTED, 10, "end")
    return made


def over_steps(title: str, layers: Sequence[str], history: Mapping[int, Mapping[str, float]]) -> Canvas:
    """Layers × steps: relative norm, darker by the decade; red where something is not finite."""
    rows, steps = list(layers)[:_ROWS], sorted(history)
    top, row = 30, 16
    made = Canvas(900, top + row * max(len(rows), 1) + 30, title)
    left, right = _LABEL, made.width - 80
    made.text(8, 18, title, size=13)
    finite = [v for found in history.values() for v in found.values() if 0 < v < math.inf]
    if not rows or not finite:
        made.text(left, top + 12, "no difference anywhere", MUTED)
        return made
    low, high = _decades(finite)
    wide = (right - left) / len(steps)
    for i, layer in enumerate(rows):
        y = top + row * i
        made.text(left - 8, y + 12, _short(layer), INK, 10, "end")
        for j, step in enumerate(steps):
            value = history[step].get(layer, 0.0)
            made.rect(left + wide * j, y + 1, wide - 1, row - 2, _shade(value, low, high))
        made.text(right + 6, y + 12, f"{history[steps[-1]].get(layer, 0.0):.1e}", MUTED, 10)
    bottom = top + row * len(rows)
    made.line(left, bottom, right, bottom, RULE)
    for j, step in enumerate(steps):
        made.text(left + wide * (j + 0.5), bottom + 16, f"step {step:,}", MUTED, 10, "middle")
    return made


def growth(title: str, measured: Mapping[str, Points], theory: Mapping[str, Points], across: str) -> Canvas:
    """Errors against a length, both logarithmic: measured ones with marks, theory as pale lines.

    Args:
        measured: what → (length, error).
        theory: a bound's name → the same.
        across: what the horizontal axis is.
    """
    made = Canvas(900, 330, title)
    left, right, top, bottom = 70, made.width - 190, 34, made.height - 44
    made.text(8, 18, title, size=13)
    every = [p for ps in (*measured.values(), *theory.values()) for p in ps if 0 < p[1] < math.inf]
    if not any(0 < y < math.inf for ps in measured.values() for _, y in ps):
        made.text(left, 60, "nothing was measured", MUTED)
        return made
    low, high = _decades([y for _, y in every])
    first, last = math.log2(min(x for x, _ in every)), math.log2(max(x for x, _ in every))
    last = last if last > first else first + 1

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + (math.log2(x) - first) / (last - first) * (right - left),
            bottom - (math.log10(y) - low) / (high - low) * (bottom - top),
        )

    for e in range(low, high + 1):
        y = at(2**first, 10.0**e)[1]
        made.line(left, y, right, y)
        made.text(left - 6, y + 4, f"1e{e}", MUTED, 10, "end")
    for e in range(math.ceil(first), math.floor(last) + 1):
        x = at(2.0**e, 10.0**low)[0]
        made.line(x, bottom, x, bottom + 4)
        made.text(x, bottom + 16, f"{2**e:,}", MUTED, 9, "middle")
    made.text((left + right) / 2, bottom + 34, across, MUTED, 11, "middle")
    ends: list[float] = []
    drawn = [(n, p, "#9aa5b1", False) for n, p in theory.items()]
    drawn += [(n, p, c, True) for (n, p), c in zip(measured.items(), _colours(len(measured)), strict=True)]
    for name, points, colour, marked in sorted(drawn, key=lambda d: -_end(d[1])):
        places = [at(x, y) for x, y in points if 0 < y < math.inf]
        if not places:
            continue
        made.path(places, colour, 2.0 if marked else 1.0)
        if marked:
            for x, y in places:
                made.rect(x - _MARK, y - _MARK, 2 * _MARK, 2 * _MARK, colour)
        y = places[-1][1] + 4
        while any(abs(y - other) < 12 for other in ends):
            y += 4
        ends.append(y)
        made.text(right + 8, y, name, colour if marked else MUTED, 10)
    return made


def _end(points: Points) -> float:
    finite = [y for _, y in points if 0 < y < math.inf]
    return finite[-1] if finite else 0.0


def _shade(value: float, low: int, high: int) -> str:
    if not math.isfinite(value):
        return "#b91c1c"
    if value <= 0:
        return "#f3f5f7"
    return shade(0.08 + 0.92 * (math.log10(value) - low) / (high - low), "#0b4f8a")


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _powers(made: Canvas, low: int, high: int, ends: object, y: float) -> None:
    assert callable(ends)
    every = max((high - low) // 12, 1)
    for e in range(low, high + 1, every):
        x0, y0, x1, y1 = ends(e)
        made.line(x0, y0, x1, y1)
        made.text(x0, y, f"1e{e}", MUTED, 10, "middle")


def _legend(made: Canvas, sides: Mapping[str, object], x: float, y: float) -> None:
    for name, colour in zip(sides, _colours(len(sides)), strict=True):
        made.rect(x, y - 7, 8, 8, colour)
        made.text(x + 12, y, name, colour, 10)
        x += 30 + 6.5 * len(name)


def _colours(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def _short(layer: str) -> str:
    name = layer or "(model)"
    return name if len(name) <= 32 else "…" + name[-31:]
