"""What follows from the snapshots of a training, one after the other: findings, said seldom."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from castiron.diagnostics import Finding, Place, finding
from castiron.health import symptoms
from castiron.health.snapshot import Kind, ScaleHealth, Snapshot
from castiron.health.symptoms import Case
from castiron.policy import PrecisionPolicy

STUCK, ATTEMPTS = 0.5, 20
"""Share of steps that overflow, over so many, from which on the scale is stuck."""


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
            return self._once(snapshot.step, list(symptoms.near(snapshot, self._largest)))  # peaks alone
        for cases in (
            symptoms.underflow(snapshot),
            symptoms.lost(snapshot, self._row),
            symptoms.near(snapshot, self._largest),
            symptoms.grows(snapshot, self._policy.compute),
            symptoms.moments(snapshot),
            symptoms.dead(snapshot, self._row),
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
            received=f"overflows at a scale of {symptoms.power(scaling.scale)}",
            scale=scaling.scale,
            overflows=overflows,
            attempts=tried,
            at_floor=scaling.at_floor,
            step=step,
        )
        return self._once(step, [Case("", 1.0, made)])

    # --- what was said, and what was seen ------------------------------------------------------------

    def _once(self, step: int, cases: list[Case]) -> list[Finding]:
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


def _calibrated(scaling: ScaleHealth, overflows: int) -> bool:
    """Whether so many overflows are more than calibrating takes: a dynamic scale halves at each."""
    if scaling.kind == "static":
        return True
    halvings = math.log2(max(2.0**16 / max(scaling.floor, 1e-30), 2.0))
    return scaling.at_floor > 0 or overflows > halvings + 8
