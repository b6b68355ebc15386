"""A comparison as tables, figures and one HTML page that needs nothing else: no script, no network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from html import escape

from castiron.formats import number_format
from castiron.health import figures
from castiron.health.difference_figures import growth, over_steps, profile
from castiron.health.differences import Difference, expected_growth, gamma, unit_roundoff
from castiron.health.drawing import Canvas
from castiron.training.comparing import Comparison, Side
from castiron.training.report_page import page, table
from castiron.training.side import WHATS, What

SIDES = ("policy", "loss at the end", "validation", "ms a step", "memory", "parts in", "outcome")
LAYERS = ("layer", "format", "relative norm", "× rounding", "ulps, median", "ulps, most", "1 − cosine", "")
_DEEP = ("Linear", "Conv")
_FEW = 4
"""Layers from which the growth of errors with depth is drawn."""
_THEORY = 2
"""Lengths from which the growth of errors is drawn."""


def side_rows(found: Comparison) -> list[tuple[str, ...]]:
    """A row per policy, refused ones too."""
    return [
        (
            s.name + (" (widest)" if s.name == found.reference else ""),
            f"{s.losses[-1]:.6g}" if s.losses else "",
            ", ".join(f"{n} {v:.5g}" for n, v in s.metrics.items()),
            "" if math.isnan(s.step_ms) else f"{s.step_ms:.2f}",
            ", ".join(f"{_bytes(b)} {what}" for what, b in s.memory.items()),
            _parts(found, s),
            _outcome(s),
        )
        for s in found.sides
    ]


def _outcome(side: Side) -> str:
    if side.stopped:
        return f"stopped after {side.stopped.step:,} steps: {side.stopped.finding.code}"
    return f"refused: {side.refused.code}" if side.refused else "ran"


def _parts(found: Comparison, side: Side) -> str:
    if not side.differences:
        return ""
    first = side.first("activations")
    return "nowhere" if first is None else found.label(first)


def layer_rows(layers: Mapping[str, Difference], found: Comparison) -> list[tuple[str, ...]]:
    """A row per layer of one look."""
    return [
        (
            found.label(layer),
            d.format,
            _number(d.relative_norm),
            _number(d.excess),
            _number(d.ulps_median),
            _number(d.ulps_max),
            _number(max(1 - d.cosine, 0.0)),
            f"{d.step}, {d.not_finite:,} not finite" if d.not_finite else d.step,
        )
        for layer, d in layers.items()
    ]


def drawn(found: Comparison) -> dict[str, Canvas]:
    """Name of a file → figure."""
    made: dict[str, Canvas] = {}
    ran = [s for s in found.sides if s.losses]
    if ran:
        curves = {s.name: list(enumerate(s.losses, 1)) for s in ran}
        made["losses"] = figures.lines("Loss of each step", curves)
    compared = found.compared
    if not compared:
        return made
    base = found.of(found.reference).losses
    apart = {
        s.name: [
            (i, abs(a - b) / abs(b)) for i, (a, b) in enumerate(zip(s.losses, base, strict=False), 1) if b
        ]
        for s in compared
    }
    made["loss-differences"] = figures.lines(
        f"Relative difference of the loss from {found.reference}", apart, log=True
    )
    for what in WHATS:
        norms = {s.name: _norms(s, what, 0) for s in compared}
        layers = list(dict.fromkeys(layer for side in norms.values() for layer in side))
        if layers:
            marks = {s.name: s.first(what) or "" for s in compared}
            title = f"{what.capitalize()} before the first step: relative norm of the difference from "
            name = what.replace(" ", "-")
            made[name] = profile(f"{title}{found.reference} (ring: parts)", layers, norms, marks)
    if (deep := depth_figure(found)) is not None:
        made["depth"] = deep
    for s in compared:
        history = {step: _norms(s, "activations", step) for step in s.differences}
        if len(history) > 1:
            layers = list(next(iter(history.values())))
            title = (
                f"{s.name}: activations over steps, relative norm of the difference from {found.reference}"
            )
            made[f"activations-over-steps-{s.name}"] = over_steps(title, layers, history)
    if (products := product_figure(found)) is not None:
        made["products"] = products
    return made


def depth_figure(found: Comparison) -> Canvas | None:
    """Activations of linear and convolution layers by their number in the pass, with what errors of the first
    one's size would come to: added up, and as independent ones. None where there are few."""
    measured: dict[str, list[tuple[float, float]]] = {}
    theory: dict[str, list[tuple[float, float]]] = {}
    for s in found.compared:
        norms = _norms(s, "activations", 0)
        deep = [v for layer, v in norms.items() if found.types.get(layer, "").startswith(_DEEP)]
        parallel = len(s.products) > 1  # layers that take the same thing do not hand their errors on
        if parallel or len(deep) < _FEW or not 0 < deep[0] < math.inf:
            continue
        places = [float(k) for k in range(1, len(deep) + 1)]
        measured[s.name] = list(zip(places, deep, strict=True))
        theory[f"k, from {s.name}"] = [(k, k * deep[0]) for k in places]
        theory[f"sqrt(k), from {s.name}"] = [(k, math.sqrt(k) * deep[0]) for k in places]
    if not measured:
        return None
    title = f"Activations before the first step: relative norm of the difference from {found.reference}"
    return growth(title, measured, theory, "k, linear and convolution layers passed")


def product_figure(found: Comparison) -> Canvas | None:
    """Errors of products against their length, with √n·u and n·u; None where there is but one length."""
    measured = {s.name: [(float(p.n), p.error) for p in s.products] for s in found.compared if s.products}
    lengths = sorted({n for points in measured.values() for n, _ in points})
    if len(lengths) < _THEORY:
        return None
    theory: dict[str, list[tuple[float, float]]] = {}
    for s in found.compared:
        if s.name not in measured:
            continue
        sums = summed_in(s)
        u = unit_roundoff(sums)
        theory[f"n·u, {sums}"] = [(n, gamma(int(n), u)) for n in lengths]
        theory[f"sqrt(n)·u, {sums}"] = [(n, expected_growth(int(n), u)) for n in lengths]
        if number_format(s.policy.compute).fraction_bits < number_format(sums).fraction_bits:
            compute = s.policy.compute
            theory[f"3u, {compute}"] = [(n, 3 * unit_roundoff(compute)) for n in lengths]
    title = f"Error of a product of n terms against {found.reference}, relative to |x||W|"
    return growth(title, measured, theory, "n, products in each sum")


def summed_in(side: Side) -> str:
    """Format in which a product's sums are taken: products of 16 bits and fewer are summed in float32."""
    compute = number_format(side.policy.compute)
    return compute.name if compute.fraction_bits > number_format("float32").fraction_bits else "float32"


def as_html(found: Comparison) -> str:
    """The page: where each policy parts, first."""
    pictures = drawn(found)
    verdicts = [line for s in found.sides for line in found.verdict(s)]
    well = all(s.status == "ran" for s in found.sides)
    told = "".join(f"<p>{escape(line)}</p>" for line in verdicts)
    head = (
        f"<h1>{escape(found.recipe)}: {escape(', '.join(s.name for s in found.sides))}</h1>"
        f'<div class="verdict {"well" if well else "ill"}">{told}</div>'
        f"<p>{escape(found.source)}, seed {found.seed}, {found.steps:,} steps on {escape(found.device)}. "
        "The same batches and initial weights; differences are from the widest policy. Layers were looked at "
        "on the first training batch, without dropout.</p>"
    )
    sections = {
        "Policies": table(SIDES, side_rows(found)),
        "Curves": _shown(pictures, ("losses", "loss-differences")),
        "Layers": _shown(pictures, [w.replace(" ", "-") for w in WHATS]),
        "Depth": _shown(pictures, ("depth",)),
        "Steps": _shown(pictures, [n for n in pictures if n.startswith("activations-over")]),
        "Products": _shown(pictures, ("products",)),
        "Figures": "".join(_tables(found, s) for s in found.compared),
    }
    return page(f"{found.recipe}: compared", head, {n: body for n, body in sections.items() if body})


def _tables(found: Comparison, side: Side) -> str:
    parts = []
    for what in WHATS:
        layers = side.differences.get(0, {}).get(what, {})
        if layers:
            parts.append(f"<h3>{escape(side.name)}, {what}, before the first step</h3>")
            parts.append(table(LAYERS, layer_rows(layers, found)))
    return "".join(parts)


def _shown(pictures: Mapping[str, Canvas], names: Iterable[str]) -> str:
    return "".join(pictures[name].svg() for name in names if name in pictures)


def _norms(side: Side, what: What, step: int) -> dict[str, float]:
    layers = side.differences.get(step, {}).get(what, {})
    return {n: math.inf if d.not_finite else d.relative_norm for n, d in layers.items()}


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}"


def _bytes(n: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n} B"
