"""Figures of numerical health: exponents beside the bands of the formats; layers × steps of headroom and
underflow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from castiron.formats import number_format
from castiron.health.drawing import INK, MUTED, PAPER, RULE, Canvas, shade
from castiron.health.rounding import highest_exponent, lowest_exponent
from castiron.health.snapshot import Kind, Snapshot
from castiron.health.statistics import Statistics

BANDS = {"float16": "#b3541e", "bfloat16": "#1f7a4d", "float8_e4m3fn": "#7a3fa0", "float8_e5m2": "#a8324a"}
"""Formats whose bands are drawn, and their colours."""
_LABEL = 190
"""Pixels for the names of layers."""
_ROWS = 40
"""Layers in a figure, at most."""


def exponents(snapshot: Snapshot, kind: Kind) -> Canvas:
    """A row per layer: how its magnitudes spread over binades. Above, what each format holds: normal
    numbers as a full bar, subnormal ones as a pale one."""
    chosen = fewer(snapshot.kind(kind))
    spans = [_span(s) for s in chosen.values() if s.live]
    low = min([min(a for a, _ in spans) if spans else -24, -24]) - 1
    high = max([max(b for _, b in spans) if spans else 15, 15]) + 2
    low = max(low, -150)
    row, top = 16, 34 + 14 * len(BANDS) + 14
    made = Canvas(900, top + row * max(len(chosen), 1) + 34, f"Exponents of {kind}, step {snapshot.step:,}")
    left, right = _LABEL, made.width - 70
    step = (right - left) / (high - low)

    def at(exponent: float) -> float:
        return left + (min(max(exponent, low), high) - low) * step

    made.text(8, 18, made.title, size=13)
    bottom = top + row * max(len(chosen), 1)
    for tick in range(math.ceil(low / 10) * 10, high + 1, 10):
        made.line(at(tick), 30, at(tick), bottom + 4)
        made.text(at(tick), bottom + 18, f"2^{tick}", MUTED, 10, "middle")
    for i, (name, colour) in enumerate(BANDS.items()):
        of, y = number_format(name), 34 + 14 * i
        normal, end = lowest_exponent(of), highest_exponent(of) + 1
        made.text(left - 8, y + 9, name, colour, 10, "end")
        made.rect(
            at(normal - of.fraction_bits), y + 2, at(normal) - at(normal - of.fraction_bits), 7, colour, 0.3
        )
        made.rect(at(normal), y + 2, at(end) - at(normal), 7, colour)
    for i, (layer, s) in enumerate(chosen.items()):
        y = top + row * i
        made.text(left - 8, y + 12, _short(layer), INK, 10, "end")
        counts = s.exponents[:-1].astype(np.float64)
        counts[0] -= s.zeros
        largest = counts.max() if s.live else 0.0
        for b in np.nonzero(counts)[0]:
            # the root: a tail of a hundredth is to be seen
            dark = 0.12 + 0.88 * math.sqrt(counts[b] / largest)
            made.rect(at(int(b) - s.bias), y + 2, max(step - 0.5, 0.8), row - 4, shade(dark))
        of = number_format(s.dtype)
        if of.bits <= 16:  # the format in use ends inside the figure
            edge = at(highest_exponent(of) + 1)
            made.line(edge, y + 1, edge, y + row - 1, "#c2410c", 2)
        zeros = s.share(s.zeros)
        note = f"{100 * zeros:.0f} % zero" if zeros >= 0.005 else ""
        made.text(right + 6, y + 12, note, MUTED, 9)
    if not chosen:
        made.text(left, top + 12, "nothing was measured", MUTED)
    return made


def headroom_map(history: Sequence[Snapshot], kind: Kind = "activations") -> Canvas:
    """Layers × steps: binades left to overflow. Red below 2, pale above 12."""

    def colour(s: Statistics) -> str:
        up = s.headroom_up()
        if up is None:
            return PAPER
        return "#b91c1c" if up < 2 else shade(max((14 - up) / 14, 0.06), "#c2410c")

    def note(s: Statistics) -> str:
        up = s.headroom_up()
        return "" if up is None else f"{up:.1f}"

    title = f"Headroom of {kind}: binades to overflow (right: now; red below 2)"
    return _map(title, history, kind, colour, note)


def underflow_map(history: Sequence[Snapshot], kind: Kind = "activation gradients") -> Canvas:
    """Layers × steps: share of what is not zero that is subnormal in its format; grey where all is zero."""

    def share(s: Statistics) -> float:
        return s.subnormals / s.live if s.live else 0.0

    def colour(s: Statistics) -> str:
        if not s.live:
            return "#9ca3af"
        return shade(0.06 + 0.94 * min(math.sqrt(share(s)), 1.0), "#5b21b6") if share(s) else "#eef2f6"

    def note(s: Statistics) -> str:
        return "all zero" if not s.live else f"{100 * share(s):.2g} %"

    title = f"Underflow of {kind}: share that is subnormal (right: now; grey: all zero)"
    return _map(title, history, kind, colour, note)


def lines(
    title: str, series: Mapping[str, Sequence[tuple[float, float]]], *, unit: str = "", log: bool = False
) -> Canvas:
    """Curves over steps, labelled at their ends."""
    colours = ("#0b4f8a", "#b3541e", "#1f7a4d", "#7a3fa0", "#a8324a", "#52606d")
    made = Canvas(900, 260, title)
    left, right, top, bottom = 70, made.width - 170, 34, made.height - 30
    made.text(8, 18, title, size=13)
    points = {
        n: [(x, math.log10(y) if log else y) for x, y in p if math.isfinite(y) and (y > 0 or not log)]
        for n, p in series.items()
    }
    everything = [p for ps in points.values() for p in ps]
    if not everything:
        made.text(left, 60, "nothing was logged", MUTED)
        return made
    x0, x1 = min(x for x, _ in everything), max(x for x, _ in everything)
    y0, y1 = min(y for _, y in everything), max(y for _, y in everything)
    x1, y1 = (x1 if x1 > x0 else x0 + 1), (y1 if y1 > y0 else y0 + (abs(y0) * 0.1 or 1))
    for i in range(5):
        y = bottom - (bottom - top) * i / 4
        value = y0 + (y1 - y0) * i / 4
        made.line(left, y, right, y)
        made.text(left - 6, y + 4, f"{10**value:.1e}" if log else f"{value:.4g}", MUTED, 10, "end")
        x = left + (right - left) * i / 4
        made.text(x, bottom + 18, f"{x0 + (x1 - x0) * i / 4:,.0f}", MUTED, 10, "middle")
    ends: list[float] = []
    for (name, ps), colour in zip(points.items(), colours * (len(points) // len(colours) + 1), strict=False):
        if not ps:
            continue
        drawn = [
            (left + (x - x0) / (x1 - x0) * (right - left), bottom - (y - y0) / (y1 - y0) * (bottom - top))
            for x, y in ps
        ]
        made.path(drawn, colour)
        if len(drawn) == 1:
            made.rect(drawn[0][0] - 2, drawn[0][1] - 2, 4, 4, colour)
        y = drawn[-1][1] + 4
        while any(abs(y - other) < 12 for other in ends):
            y += 12
        ends.append(y)
        last = 10 ** ps[-1][1] if log else ps[-1][1]
        made.text(right + 8, y, f"{name} {last:.4g}{unit}", colour, 10)
    return made


def fewer(layers: Mapping[str, Statistics], limit: int = _ROWS) -> dict[str, Statistics]:
    """So many layers at most, in their order: those with least headroom and those with most subnormal
    elements."""
    if len(layers) <= limit:
        return dict(layers)

    def tightness(layer: str) -> float:
        s = layers[layer]
        up = s.headroom_up()
        return (up if up is not None else 99.0) - 20 * (s.subnormals / s.live if s.live else 0.0)

    kept = set(sorted(layers, key=tightness)[:limit])
    return {layer: s for layer, s in layers.items() if layer in kept}


def _map(
    title: str,
    history: Sequence[Snapshot],
    kind: Kind,
    colour: Callable[[Statistics], str],
    note: Callable[[Statistics], str],
) -> Canvas:
    columns = list(history)
    if len(columns) > 120:  # evenly, the last among them
        picked = np.linspace(0, len(columns) - 1, 120).round().astype(int)
        columns = [columns[i] for i in picked]
    last = columns[-1].kind(kind) if columns else {}
    rows = list(fewer(last))
    height = 16
    made = Canvas(900, 34 + height * max(len(rows), 1) + 30, title)
    left, right = _LABEL, made.width - 70
    made.text(8, 18, title, size=13)
    if not rows:
        made.text(left, 46, "nothing was measured", MUTED)
        return made
    step = (right - left) / len(columns)
    for i, layer in enumerate(rows):
        y = 30 + height * i
        made.text(left - 8, y + 12, _short(layer), INK, 10, "end")
        made.text(right + 6, y + 12, note(last[layer]), MUTED, 10)
        for j, snapshot in enumerate(columns):
            s = snapshot.groups.get((kind, layer))
            if s is not None:
                made.rect(left + step * j, y + 1, max(step - 0.4, 0.8), height - 2, colour(s))
    bottom = 30 + height * len(rows)
    made.line(left, bottom, right, bottom, RULE)
    for j in sorted({0, len(columns) // 2, len(columns) - 1}):
        made.text(left + step * (j + 0.5), bottom + 16, f"step {columns[j].step:,}", MUTED, 10, "middle")
    return made


def _short(layer: str) -> str:
    name = layer or "(model)"
    return name if len(name) <= 30 else "…" + name[-29:]


def _span(s: Statistics) -> tuple[int, int]:
    filled = np.nonzero(s.exponents[1:-1])[0]
    if not len(filled):
        return 1 - s.bias, 1 - s.bias
    return int(filled[0]) + 1 - s.bias, int(filled[-1]) + 1 - s.bias
