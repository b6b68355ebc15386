"""Parts of one measurement put together: calls of a layer, and what several processes saw of one step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import TypeVar

from castiron.health.dynamics import SecondMoment, Update
from castiron.health.snapshot import BackwardCast, Kind, LayerUpdate, Snapshot
from castiron.health.statistics import Statistics, WhatIf

K = TypeVar("K")

OF_ROWS: tuple[Kind, ...] = ("activations", "activation gradients")
"""What each process has of its own rows; all else is the same on every one, or shared among them."""


def merged(a: Statistics, b: Statistics) -> Statistics:
    """Two parts of a group as one. Of what other formats would make, each part by its live elements: what is
    said of the best scale is of each part's own."""
    if a.dtype != b.dtype or len(a.exponents) != len(b.exponents):
        return a if a.size >= b.size else b
    smallest = [s for s in (a.smallest, b.smallest) if s]
    return Statistics(
        a.dtype,
        a.size + b.size,
        a.exponents + b.exponents,
        a.zeros + b.zeros,
        a.nans + b.nans,
        max(a.largest, b.largest),
        min(smallest, default=0.0),
        a.squares + b.squares,
        {f: _merged_what_if(a, b, f) for f in a.what_if if f in b.what_if},
    )


def of_all_processes(snapshots: Sequence[Snapshot], *, shared: bool) -> Snapshot:
    """What all processes saw of one step, as one snapshot.

    Args:
        snapshots: by rank.
        shared: parameters, gradients and optimizer state are shared among the processes, each of which
            measured its own part; else they are the same on all, and rank 0's count.
    """
    first = snapshots[0]
    if len(snapshots) == 1:
        return first
    groups = dict(first.groups)
    for other in snapshots[1:]:
        for key, part in other.groups.items():
            if shared or key[0] in OF_ROWS:
                known = groups.get(key)
                groups[key] = part if known is None else merged(known, part)
    updates, moments = first.updates, first.moments
    if shared:
        updates = {
            layer: _update(
                [s.updates[layer] for s in snapshots if layer in s.updates],
                [s.kind("updates")[layer].norm for s in snapshots if layer in s.kind("updates")],
            )
            for layer in _keys(s.updates for s in snapshots)
        }
        moments = {
            layer: _moment([s.moments[layer] for s in snapshots if layer in s.moments])
            for layer in _keys(s.moments for s in snapshots)
        }
    return replace(
        first,
        groups=groups,
        peaks={
            key: max((s.peaks[key] for s in snapshots if key in s.peaks), key=lambda peak: peak[1])
            for key in _keys(s.peaks for s in snapshots)
        },
        updates=updates,
        moments=moments,
        levels={
            layer: _levels([s.levels[layer] for s in snapshots if layer in s.levels])
            for layer in _keys(s.levels for s in snapshots)
        },
        noise={
            layer: max(s.noise[layer] for s in snapshots if layer in s.noise)
            for layer in _keys(s.noise for s in snapshots)
        },
        casts=tuple(_cast(casts) for casts in zip(*(s.casts for s in snapshots), strict=False)),
    )


def least(p: float, q: float) -> float:
    """The smaller of two ratios; a NaN is none."""
    return min((v for v in (p, q) if not math.isnan(v)), default=math.nan)


def _keys(mappings: Iterable[Mapping[K, object]]) -> list[K]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _update(parts: list[LayerUpdate], changes: list[float]) -> LayerUpdate:
    """Of the parts' L2 norms: those of their changes, and of their weights."""
    weights = math.hypot(*(p.weights for p in parts))
    ratio = math.hypot(*changes) / weights if weights else math.nan
    total = Update(sum(p.update.wanted for p in parts), sum(p.update.lost for p in parts), ratio)
    return replace(parts[0], update=total, weights=weights)


def _moment(parts: list[SecondMoment]) -> SecondMoment:
    return SecondMoment(
        sum(p.moving for p in parts),
        sum(p.underflow for p in parts),
        sum(p.overflow for p in parts),
        sum(p.size for p in parts),
    )


def _levels(parts: list[tuple[float, ...]]) -> tuple[float, ...]:
    """Root mean square by time step, over those whose rows are so long."""
    found = []
    for levels in zip_longest(*parts):
        there = [level for level in levels if level is not None]
        found.append(math.hypot(*there) / math.sqrt(len(there)))
    return tuple(found)


def _cast(parts: Sequence[BackwardCast]) -> BackwardCast:
    return BackwardCast(
        parts[0].format,
        sum(p.live for p in parts),
        sum(p.lost for p in parts),
        max(p.largest for p in parts),
        min((p.low for p in parts if p.live), default=0.0),
    )


def _merged_what_if(a: Statistics, b: Statistics, name: str) -> WhatIf:
    x, y = a.what_if[name], b.what_if[name]
    total = a.live + b.live

    def mean(p: float, q: float) -> float:
        return (p * a.live + q * b.live) / total if total else 0.0

    return WhatIf(
        name,
        mean(x.overflow, y.overflow),
        mean(x.underflow, y.underflow),
        mean(x.subnormal, y.subnormal),
        least(x.snr_db, y.snr_db),
        min(x.scale, y.scale) if a.live and b.live else (x.scale if a.live else y.scale),
        mean(x.scaled_underflow, y.scaled_underflow),
        mean(x.scaled_subnormal, y.scaled_subnormal),
        least(x.scaled_snr_db, y.scaled_snr_db),
    )
