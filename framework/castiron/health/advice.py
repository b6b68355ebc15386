"""What follows from a snapshot: findings with a remedy and their evidence, said seldom."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from castiron.diagnostics import Finding, Place, finding
from castiron.formats import number_format
from castiron.health.dynamics import growth
from castiron.health.snapshot import Kind, ScaleHealth, Snapshot, headroom
from castiron.policy import PrecisionPolicy

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
STUCK, ATTEMPTS = 0.5, 20
"""Share of steps that overflow, over so many, from which on the scale is stuck."""

_NARROW_EXPONENTS = ("float16", "float8_e4m3fn", "float8_e5m2")
_BACKWARD: tuple[Kind, ...] = ("activation gradients", "gradients")


@dataclass(frozen=True, slots=True)
class _Case:
    """One layer that something is wrong with."""

    layer: str
    measure: float
    """How bad it is: larger is worse. Layers of one code are ordered by it."""
    finding: Finding


class Advisor:
    """Looks at one snapshot after the other.

    Each thing is said once for a layer, and again only when the run is ten times as old; of many layers
    the worst is named, and the others are counted.
    """

    def __init__(self, policy: PrecisionPolicy) -> None:
        self._policy = policy
        self._said: dict[tuple[str, str], int] = {}
        self._in_a_row: dict[tuple[str, str], int] = {}
        self._largest: dict[tuple[Kind, str], deque[tuple[int, float]]] = {}
        self._scales: deque[tuple[int, int]] = deque(maxlen=ATTEMPTS + 1)

    def look(self, snapshot: Snapshot) -> list[Finding]:
        """What there is to say of a snapshot that was not said lately."""
        self._remember(snapshot)
        found: list[Finding] = []
        if not snapshot.groups and not snapshot.casts:
            return self._once(snapshot.step, list(self._near(snapshot)))  # peaks alone
        for cases in (
            self._underflow(snapshot),
            self._lost(snapshot),
            self._near(snapshot),
            self._grows(snapshot),
            self._moments(snapshot),
            self._dead(snapshot),
        ):
            found += self._once(snapshot.step, list(cases))
        return found

    def look_at_scale(self, step: int, attempts: int, scaling: ScaleHealth) -> list[Finding]:
        """What there is to say of the loss scale; to be asked at every attempted step that is measured, also
        one that was held.

        Args:
            step: committed steps.
            attempts: steps tried, those that were held among them.
        """
        if scaling.kind == "none":
            return []
        if self._scales and attempts == self._scales[-1][0]:
            return []
        self._scales.append((attempts, scaling.overflows))
        first = next((s for s in self._scales if attempts - s[0] <= ATTEMPTS * 5), self._scales[0])
        tried, overflows = attempts - first[0], scaling.overflows - first[1]
        if tried < ATTEMPTS or overflows < STUCK * tried or not _calibrated(scaling, overflows):
            return []
        made = finding(
            "N526",
            f"{overflows} of the last {tried} steps overflowed under the {scaling.kind} loss scale",
            place=Place(key="precision.scaling"),
            expected="gradients that are finite once the scale has come to rest",
            received=f"overflows at a scale of {_power(scaling.scale)}",
            scale=scaling.scale,
            overflows=overflows,
            attempts=tried,
            at_floor=scaling.at_floor,
            step=step,
        )
        return self._once(step, [_Case("", 1.0, made)])

    # --- what is looked for ------------------------------------------------------------------------

    def _underflow(self, snapshot: Snapshot) -> Iterator[_Case]:
        scaling = snapshot.scaling
        if scaling.kind == "dynamic":
            return  # the scale grows by itself until gradients fit
        lost = [c for c in snapshot.casts if c.format in _NARROW_EXPONENTS and c.lost_share >= UNDERFLOW]
        if lost:
            worst = max(lost, key=lambda c: c.lost_share)
            yield self._underflows(
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
            yield self._underflows(snapshot, layer, s.dtype, 1.0, 0.0, 0.0, "every gradient")
            return
        for layer, s in gradients:
            up = s.headroom_up()
            share = s.subnormals / s.live if s.live else 0.0
            if share >= LOST and up is not None and up > 8:
                yield self._underflows(
                    snapshot, layer, s.dtype, share, s.largest, s.quantile(0.01), "a gradient"
                )

    def _underflows(
        self, snapshot: Snapshot, layer: str, name: str, share: float, largest: float, low: float, what: str
    ) -> _Case:
        k = scale_for(name, largest, low)
        known = bool(largest)
        scale = f"2^{k}" if known else f"2^{k} (nothing is left to measure it by)"
        verb = "are subnormal" if what == "a gradient" else "underflow to zero"
        made = finding(
            "N520",
            f"{_percent(share)} of the elements of {what} {verb} in {name} at a loss scale of "
            f"{_power(snapshot.scaling.scale)}",
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
        return _Case(layer, share, made)

    def _lost(self, snapshot: Snapshot) -> Iterator[_Case]:
        for layer, step in snapshot.updates.items():
            u = step.update
            bad = (
                number_format(step.dtype).bits < 32
                and not step.stochastic
                and step.rate > 0
                and u.wanted >= 8
                and u.lost_share >= LOST
            )
            if self._row("N521", layer, bad) < 2:
                continue
            bits = number_format(step.dtype).fraction_bits
            yield _Case(
                layer,
                u.lost_share,
                finding(
                    "N521",
                    f"{_percent(u.lost_share)} of the updates of a layer are lost: its {step.dtype} "
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

    def _near(self, snapshot: Snapshot) -> Iterator[_Case]:
        kinds: tuple[Kind, ...] = ("activations",)
        if snapshot.scaling.kind != "dynamic":  # a dynamic scale grows until gradients are near the limit
            kinds = ("activations", "activation gradients")
        for kind in kinds:
            for layer, (dtype, largest) in snapshot.largest(kind).items():
                up = headroom(dtype, largest)
                if up is None or up > NEAR or dtype.startswith("float8"):
                    continue
                yield _Case(layer, -up, self._nears(snapshot, kind, layer, dtype, largest, up))

    def _nears(
        self, snapshot: Snapshot, kind: Kind, layer: str, dtype: str, largest: float, up: float
    ) -> Finding:
        wider = "float32" if number_format(dtype).bits < 32 else "float64"
        path, limit = layer.partition("[")[0], number_format(dtype).max
        rule = f'layers: {{"{path}": {{compute: {wider}}}}}'
        trend = list(self._largest.get((kind, layer), ()))
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

    def _grows(self, snapshot: Snapshot) -> Iterator[_Case]:
        for layer, levels in snapshot.levels.items():
            factor = growth(levels)
            live = [v for v in levels if v > 0 and math.isfinite(v)]
            if factor is None or factor < GROWTH or len(live) < 8 or live[-1] < GROWN * live[0]:
                continue
            path = layer.partition("[")[0]
            name = self._format_of(snapshot, layer)
            left = math.log(number_format(name).max / live[-1]) / math.log(factor)
            yield _Case(
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

    def _moments(self, snapshot: Snapshot) -> Iterator[_Case]:
        for layer, m in snapshot.moments.items():
            place = Place(module=layer, phase="optimizer")
            if m.overflow:
                made = finding(
                    "N525",
                    f"{_percent(m.overflow_share)} of Adam's second moments of a layer are infinite",
                    place=place,
                    expected="finite second moments",
                    received=f"{m.overflow} infinities among {m.size} that were looked at",
                    share=m.overflow_share,
                    step=snapshot.step,
                )
                yield _Case(layer, m.overflow_share, made)
            if m.moving >= 8 and m.underflow_share >= MOMENT:
                first = snapshot.groups.get(("first moments", layer))
                size = first.rms if first else 0.0
                made = finding(
                    "N524",
                    f"{_percent(m.underflow_share)} of Adam's second moments of a layer are zero where the "
                    f"first are not: squared gradients underflow",
                    place=place,
                    expected="second moments that are not zero where there are gradients",
                    received=f"gradients near {size:.0e}" if size else "zeros",
                    share=m.underflow_share,
                    first_moment=size,
                    step=snapshot.step,
                )
                yield _Case(layer, m.underflow_share, made)

    def _dead(self, snapshot: Snapshot) -> Iterator[_Case]:
        for layer, (dead, units) in snapshot.dead.items():
            share = dead / units if units else 0.0
            if self._row("N527", layer, units >= 8 and share >= DEAD) < 3:
                continue
            made = finding(
                "N527",
                f"{dead} of {units} units of a layer are zero for every row",
                place=Place(module=layer, phase="forward"),
                expected="units that answer to some rows",
                received=f"{_percent(share)} dead",
                dead=dead,
                units=units,
                step=snapshot.step,
            )
            yield _Case(layer, share, made)

    # --- what was said, and what was seen ------------------------------------------------------------

    def _once(self, step: int, cases: list[_Case]) -> list[Finding]:
        """Of the cases of a code that were not said lately: the worst, with the others counted."""
        found: list[Finding] = []
        if not cases:
            return found
        for code in dict.fromkeys(c.finding.code for c in cases):
            of_layer = {c.layer: c for c in reversed(cases) if c.finding.code == code}
            new = [c for c in of_layer.values() if self._new(code, c.layer, step)]
            if not new:
                continue
            new.sort(key=lambda c: -c.measure)
            for c in new:
                self._said[code, c.layer] = step
            worst = new[0].finding
            if len(new) > 1:
                evidence: dict[str, Any] = {**worst.evidence, "layers": [c.layer for c in new[:50]]}
                others = ", ".join(f"'{c.layer}'" for c in new[1:4])
                rest = f" and {len(new) - 4} more" if len(new) > 4 else ""
                worst = finding(
                    code,
                    f"{worst.message} (also {others}{rest})",
                    place=worst.place,
                    expected=worst.expected,
                    received=worst.received,
                    remedy=worst.remedy,
                    **evidence,
                )
            found.append(worst)
        return found

    def _new(self, code: str, layer: str, step: int) -> bool:
        last = self._said.get((code, layer))
        return last is None or step >= 10 * max(last, 1)

    def _row(self, code: str, layer: str, bad: bool) -> int:
        """How many snapshots in a row it has been bad."""
        count = self._in_a_row.get((code, layer), 0) + 1 if bad else 0
        self._in_a_row[code, layer] = count
        return count

    def _remember(self, snapshot: Snapshot) -> None:
        kinds: tuple[Kind, ...] = ("activations", "activation gradients")
        for kind in kinds:
            for layer, (_, largest) in snapshot.largest(kind).items():
                if largest and math.isfinite(largest):
                    trend = self._largest.setdefault((kind, layer), deque(maxlen=8))
                    trend.append((snapshot.step, largest))

    def _format_of(self, snapshot: Snapshot, layer: str) -> str:
        found = snapshot.groups.get(("activations", layer))
        return found.dtype if found is not None else self._policy.compute.replace("tf32", "float32")


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


def would_do(
    snapshots: Iterable[Snapshot], formats: Iterable[str] = ("float16", "bfloat16")
) -> list[Finding]:
    """Formats that would hold every activation and every gradient that was measured (N528): no overflow,
    and less than 0.01 % underflow, with a loss scale for the gradients where that is needed."""
    found: list[Finding] = []
    full = [s for s in snapshots if s.full]
    for name in formats if full else ():
        fits: dict[str, float] = {}
        scaled = False
        for snapshot in full:
            for (kind, layer), s in snapshot.groups.items():
                made = s.what_if.get(name)
                if made is None or kind not in ("activations", "activation gradients") or not s.live:
                    continue
                gradient = kind == "activation gradients"
                under = made.scaled_underflow if gradient else made.underflow
                if gradient and made.underflow >= 1e-4 > made.scaled_underflow:
                    scaled = True
                worst = max(0.0 if gradient else made.overflow, under)
                path = layer.partition("[")[0]
                fits[path] = max(fits.get(path, 0.0), worst)
        good = sorted(layer for layer, worst in fits.items() if worst < 1e-4)
        if good:
            found.append(
                finding(
                    "N528",
                    f"{name} would hold what was measured of {_layers_of(good, len(fits))}"
                    + (", the gradients with a loss scale" if scaled else ""),
                    expected="no overflow and less than 0.01 % underflow",
                    received=f"that in {len(good)} of {len(fits)} layers",
                    format=name,
                    layers=good,
                    refused=sorted(set(fits) - set(good)),
                    scaled=scaled,
                )
            )
    return found


def _layers_of(good: list[str], total: int) -> str:
    if len(good) == total:
        return "every layer" if total > 1 else f"layer '{good[0]}'"
    named = ", ".join(f"'{n}'" for n in good[:3])
    return f"{named} and {len(good) - 3} more layers" if len(good) > 3 else named


def _calibrated(scaling: ScaleHealth, overflows: int) -> bool:
    """Whether so many overflows are more than calibrating takes: a dynamic scale halves at each."""
    if scaling.kind == "static":
        return True
    halvings = math.log2(max(2.0**16 / max(scaling.floor, 1e-30), 2.0))
    return scaling.at_floor > 0 or overflows > halvings + 8


def _percent(share: float) -> str:
    return "100 %" if share == 1 else f"{100 * share:.3g} %"


def _power(scale: float) -> str:
    if scale > 0 and math.log2(scale).is_integer():
        return f"2^{int(math.log2(scale))}" if scale != 1 else "1"
    return f"{scale:g}"
