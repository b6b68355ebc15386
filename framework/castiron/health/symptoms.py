"""What a snapshot may be ill with, one function each: cases with a finding, its remedy and its evidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from castiron.diagnostics import Finding, Place, finding
from castiron.formats import number_format
from castiron.health.dynamics import growth
from castiron.health.snapshot import Kind, Snapshot, headroom

NEAR = 2.0
"""Binades below a format's largest number from which on a layer is near it."""
LOST = 0.5
"""Share of lost updates from which on it is said, twice in a row."""
UNDERFLOW = 0.1
"""Share of gradients that underflow from which on it is said."""
GROWTH, GROWN = 1.2, 64.0
"""Factor per time step, and over all of them, from which on a state is said to grow."""
MOMENT = 0.1
"""Share of second moments that are zero beside a first moment, from which on it is said."""
DEAD = 0.9
"""Share of dead units from which on it is said, three times in a row."""

Row = Callable[[str, str, bool], int]
"""How many snapshots in a row it has been bad: of a code, a layer, and whether it is now."""
Trends = Mapping[tuple[Kind, str], Iterable[tuple[int, float]]]
"""Steps and largest magnitudes so far."""

_NARROW_EXPONENTS = ("float16", "float8_e4m3fn", "float8_e5m2")
_BACKWARD: tuple[Kind, ...] = ("activation gradients", "gradients")


@dataclass(frozen=True, slots=True)
class Case:
    """One layer that something is wrong with."""

    layer: str
    measure: float
    """How bad it is: larger is worse. Layers of one code are ordered by it."""
    finding: Finding


def underflow(snapshot: Snapshot) -> Iterator[Case]:
    scaling = snapshot.scaling
    if scaling.kind == "dynamic":
        return  # the scale grows by itself until gradients fit
    gone = [c for c in snapshot.casts if c.format in _NARROW_EXPONENTS and c.lost_share >= UNDERFLOW]
    if gone:
        worst = max(gone, key=lambda c: c.lost_share)
        yield _underflows(
            snapshot, "", worst.format, worst.lost_share, worst.largest, worst.low, "the loss's gradient"
        )
        return
    gradients = [
        (layer, s)
        for kind in _BACKWARD
        for layer, s in snapshot.kind(kind).items()
        if s.dtype in _NARROW_EXPONENTS and s.size
    ]
    if gradients and all(s.live == 0 for _, s in gradients):
        layer, s = gradients[0]
        yield _underflows(snapshot, layer, s.dtype, 1.0, 0.0, 0.0, "every gradient")
        return
    for layer, s in gradients:
        up = s.headroom_up()
        share = s.subnormals / s.live if s.live else 0.0
        if share >= LOST and up is not None and up > 8:
            yield _underflows(snapshot, layer, s.dtype, share, s.largest, s.quantile(0.01), "a gradient")


def _underflows(
    snapshot: Snapshot, layer: str, name: str, share: float, largest: float, low: float, what: str
) -> Case:
    k = scale_for(name, largest, low)
    known = bool(largest)
    scale = f"2^{k}" if known else f"2^{k} (nothing is left to measure it by)"
    verb = "are subnormal" if what == "a gradient" else "underflow to zero"
    made = finding(
        "N520",
        f"{percent(share)} of the elements of {what} {verb} in {name} at a loss scale of "
        f"{power(snapshot.scaling.scale)}",
        place=Place(op="the loss", phase="backward")
        if what == "the loss's gradient"
        else Place(module=layer, phase="backward"),
        expected=f"a loss scale of at least {scale}",
        received=f"gradients from {low:.1e} to {largest:.1e}" if known else "zeros alone",
        remedy=f"Set `scaling: dynamic`, or `scaling: {{kind: static, scale: {2.0**k:g}}}`; "
        "bfloat16 needs none.",
        share=share,
        scale_exponent=k,
        largest=largest,
        low=low,
        format=name,
        step=snapshot.step,
    )
    return Case(layer, share, made)


def lost(snapshot: Snapshot, in_a_row: Row) -> Iterator[Case]:
    for layer, step in snapshot.updates.items():
        u = step.update
        bad = (
            number_format(step.dtype).bits < 32
            and not step.stochastic
            and step.rate > 0
            and u.wanted >= 8
            and u.lost_share >= LOST
        )
        if in_a_row("N521", layer, bad) < 2:
            continue
        bits = number_format(step.dtype).fraction_bits
        yield Case(
            layer,
            u.lost_share,
            finding(
                "N521",
                f"{percent(u.lost_share)} of the updates of a layer are lost: its {step.dtype} "
                f"weights do not move",
                place=Place(module=layer, phase="optimizer"),
                expected=f"updates of at least 2^-{bits + 2} of a weight",
                received=f"‖update‖ / ‖weight‖ = {u.ratio:.1e} at a learning rate of {step.rate:g}",
                lost=u.lost,
                wanted=u.wanted,
                ratio=u.ratio,
                step=snapshot.step,
            ),
        )


def near(snapshot: Snapshot, trends: Trends) -> Iterator[Case]:
    kinds: tuple[Kind, ...] = ("activations",)
    if snapshot.scaling.kind != "dynamic":  # a dynamic scale grows until gradients are near the limit
        kinds = ("activations", "activation gradients")
    for kind in kinds:
        for layer, (dtype, largest) in snapshot.largest(kind).items():
            up = headroom(dtype, largest)
            if up is None or up > NEAR or dtype.startswith("float8"):
                continue
            yield Case(
                layer, -up, _nears(snapshot, kind, layer, dtype, largest, up, trends.get((kind, layer), ()))
            )


def _nears(
    snapshot: Snapshot,
    kind: Kind,
    layer: str,
    dtype: str,
    largest: float,
    up: float,
    seen: Iterable[tuple[int, float]],
) -> Finding:
    wider = "float32" if number_format(dtype).bits < 32 else "float64"
    path, limit = layer.partition("[")[0], number_format(dtype).max
    rule = f'layers: {{"{path}": {{compute: {wider}}}}}'
    trend = list(seen)
    left = steps_left(trend, limit)
    rate = ""
    if left:
        rate = f"; at the rate of the last {len(trend)} measurements it overflows in {left:,} steps"
    return finding(
        "N522",
        f"The {kind} of a layer are within {max(up, 0):.1f} binades of the largest {dtype} "
        f"({largest:,.6g} of {limit:,.6g}){rate}",
        place=Place(module=path, phase="forward" if kind == "activations" else "backward"),
        expected=f"at least {NEAR:g} binades of headroom",
        received=f"{up:.2f}",
        remedy=f"Keep it wide: `precision: {{{rule}}}`"
        + (", or use bfloat16 in place of float16." if dtype == "float16" else "."),
        largest=largest,
        headroom=up,
        rule=rule,
        trend=[[step, value] for step, value in trend],
        steps_left=left,
        step=snapshot.step,
    )


def grows(snapshot: Snapshot, compute: str) -> Iterator[Case]:
    for layer, levels in snapshot.levels.items():
        factor = growth(levels)
        live = [v for v in levels if v > 0 and math.isfinite(v)]
        if factor is None or factor < GROWTH or len(live) < 8 or live[-1] < GROWN * live[0]:
            continue
        path = layer.partition("[")[0]
        name = _format_of(snapshot, layer, compute)
        left = math.log(number_format(name).max / live[-1]) / math.log(factor)
        yield Case(
            layer,
            factor,
            finding(
                "N523",
                f"The state of a recurrent layer grows by a factor of {factor:.2f} per time step, over "
                f"{len(levels)} steps from {live[0]:.2g} to {live[-1]:.2g}",
                place=Place(module=path, phase="forward"),
                expected="a state that stays within bounds",
                received=f"a factor of {factor:.2f}: {name} overflows after {max(int(left), 0):,} more",
                growth=factor,
                levels=list(levels[:64]),
                steps_left=max(int(left), 0),
                step=snapshot.step,
            ),
        )


def moments(snapshot: Snapshot) -> Iterator[Case]:
    for layer, m in snapshot.moments.items():
        place = Place(module=layer, phase="optimizer")
        if m.overflow:
            made = finding(
                "N525",
                f"{percent(m.overflow_share)} of Adam's second moments of a layer are infinite",
                place=place,
                expected="finite second moments",
                received=f"{m.overflow} infinities among {m.size} that were looked at",
                share=m.overflow_share,
                step=snapshot.step,
            )
            yield Case(layer, m.overflow_share, made)
        if m.moving >= 8 and m.underflow_share >= MOMENT:
            first = snapshot.groups.get(("first moments", layer))
            size = first.rms if first else 0.0
            made = finding(
                "N524",
                f"{percent(m.underflow_share)} of Adam's second moments of a layer are zero where the "
                f"first are not: squared gradients underflow",
                place=place,
                expected="second moments that are not zero where there are gradients",
                received=f"gradients near {size:.0e}" if size else "zeros",
                share=m.underflow_share,
                first_moment=size,
                step=snapshot.step,
            )
            yield Case(layer, m.underflow_share, made)


def dead(snapshot: Snapshot, in_a_row: Row) -> Iterator[Case]:
    for layer, (silent, units) in snapshot.dead.items():
        share = silent / units if units else 0.0
        if in_a_row("N527", layer, units >= 8 and share >= DEAD) < 3:
            continue
        made = finding(
            "N527",
            f"{silent} of {units} units of a layer are zero for every row",
            place=Place(module=layer, phase="forward"),
            expected="units that answer to some rows",
            received=f"{percent(share)} dead",
            dead=silent,
            units=units,
            step=snapshot.step,
        )
        yield Case(layer, share, made)


def scale_for(name: str, largest: float, low: float) -> int:
    """k of the smallest loss scale 2**k by which gradients from `low` on are normal numbers of a format, as
    far as the largest then stays two binades away from overflow; 16 where there is nothing to go by.

    16 is the initial scale of PyTorch's and Keras' loss scaling (Micikevicius et al. 2018, "Mixed Precision
    Training", section 3.2).
    """
    of = number_format(name)
    if not largest or not low:
        return 16
    assert of.smallest_normal is not None
    wanted = math.ceil(math.log2(of.smallest_normal) - math.log2(low))
    allowed = math.floor(math.log2(of.max) - math.log2(largest) - NEAR)
    return max(min(wanted, allowed), 0)


def steps_left(trend: Iterable[tuple[int, float]], limit: float) -> int | None:
    """Steps until a magnitude passes a limit, by a straight line through its logarithm; None where it does
    not grow, or with fewer than three measurements."""
    points = [(step, math.log2(value)) for step, value in trend if value > 0]
    if len(points) < 3:
        return None
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
    if slope <= 1e-6:
        return None
    return max(math.ceil((math.log2(limit) - points[-1][1]) / slope), 0)


def _format_of(snapshot: Snapshot, layer: str, compute: str) -> str:
    found = snapshot.groups.get(("activations", layer))
    return found.dtype if found is not None else compute.replace("tf32", "float32")


def percent(share: float) -> str:
    return "100 %" if share == 1 else f"{100 * share:.3g} %"


def power(scale: float) -> str:
    if scale > 0 and math.log2(scale).is_integer():
        return f"2^{int(math.log2(scale))}" if scale != 1 else "1"
    return f"{scale:g}"
