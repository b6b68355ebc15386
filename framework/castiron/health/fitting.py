"""Formats that would do for what was measured."""

from __future__ import annotations

from collections.abc import Iterable

from castiron.diagnostics import Finding, finding
from castiron.health.snapshot import Snapshot


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
