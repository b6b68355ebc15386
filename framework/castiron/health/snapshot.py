"""What one measured step shows, as plain data: the same from every wing."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from castiron.formats import number_format
from castiron.health.dynamics import SecondMoment, Update, growth
from castiron.health.statistics import Statistics

Kind = Literal[
    "activations",
    "activation gradients",
    "parameters",
    "gradients",
    "first moments",
    "second moments",
    "updates",
]
KINDS: tuple[Kind, ...] = (
    "activations",
    "activation gradients",
    "parameters",
    "gradients",
    "first moments",
    "second moments",
    "updates",
)


@dataclass(frozen=True, slots=True)
class BackwardCast:
    """Where the gradient of the loss went from a wide format to a narrow one."""

    format: str
    live: int
    """Elements of the wide gradient that are not zero."""
    lost: int
    """Elements among them that are zero in the narrow format."""
    largest: float
    """Largest finite magnitude of the wide gradient."""
    low: float
    """Lower edge of the binade below which a hundredth of its live elements lie."""

    @property
    def lost_share(self) -> float:
        return self.lost / self.live if self.live else 0.0


@dataclass(frozen=True, slots=True)
class ScaleHealth:
    """Loss scaling so far."""

    kind: str
    """none, static or dynamic."""
    scale: float = 1.0
    floor: float = 1.0
    overflows: int = 0
    """Steps whose gradients overflowed."""
    at_floor: int = 0
    """How many of them in a row, up to the last step, met a scale that could fall no further."""


@dataclass(frozen=True, slots=True)
class LayerUpdate:
    """What the step did to a layer's parameters."""

    update: Update
    dtype: str
    """What the updated weights are kept in: the master copy's format where there is one."""
    stochastic: bool = False
    """Whether the weights are rounded stochastically, so that small updates are kept on average."""
    rate: float = 0.0
    """Learning rate of the step."""
    weights: float = math.nan
    """L2 norm of the weights before the step, of the sample."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The health of one step. Keys of the mappings are paths of layers; "" is the model itself."""

    step: int
    """Committed optimizer steps, this one included."""
    groups: Mapping[tuple[Kind, str], Statistics] = field(default_factory=dict)
    """What a layer hands on (and the gradient of it), and all of its own parameters taken together."""
    peaks: Mapping[tuple[Kind, str], tuple[str, float]] = field(default_factory=dict)
    """Format and largest magnitude (infinite where an element is not finite) of what was looked at for
    nothing else in this step."""
    updates: Mapping[str, LayerUpdate] = field(default_factory=dict)
    moments: Mapping[str, SecondMoment] = field(default_factory=dict)
    levels: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Root mean square of a recurrent layer's state, by time step."""
    dead: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Dead units and all units of what a layer hands on."""
    noise: Mapping[str, float] = field(default_factory=dict)
    """`castiron.health.dynamics.accumulation_noise` of a layer's gradient, in the format in which the
    gradients of its parameters are kept."""
    casts: tuple[BackwardCast, ...] = ()
    scaling: ScaleHealth = ScaleHealth("none")
    held: int = 0
    """Steps held so far."""
    full: bool = False
    """Whether what other formats would make of it was measured too."""

    def largest(self, kind: Kind) -> dict[str, tuple[str, float]]:
        """Format and largest magnitude of one kind, by layer."""
        found = {layer: value for (k, layer), value in self.peaks.items() if k == kind}
        return found | {layer: (s.dtype, s.largest) for layer, s in self.kind(kind).items()}

    def kind(self, kind: Kind) -> dict[str, Statistics]:
        """The groups of one kind, by layer."""
        return {layer: s for (k, layer), s in self.groups.items() if k == kind}

    def at(self, step: int) -> Snapshot:
        return replace(self, step=step)


def rows_of(snapshot: Snapshot) -> list[dict[str, Any]]:
    """A snapshot as rows for a table: one for each kind and layer; null (None) where there is nothing to
    say."""
    rows: list[dict[str, Any]] = []
    for (kind, layer), s in snapshot.groups.items():
        row: dict[str, Any] = {
            "step": snapshot.step,
            "kind": kind,
            "layer": layer,
            "dtype": s.dtype,
            "size": s.size,
            "zeros": s.zeros,
            "subnormals": s.subnormals,
            "nans": s.nans,
            "infinities": s.infinities,
            "largest": s.largest,
            "smallest": s.smallest,
            "rms": s.rms,
            "headroom_up": s.headroom_up(),
            "headroom_down": s.headroom_down(),
            "first_exponent": _first(s),
            "exponents": _trimmed(s),
        }
        for name, made in s.what_if.items():
            row |= {
                f"{name}/overflow": made.overflow,
                f"{name}/underflow": made.underflow,
                f"{name}/subnormal": made.subnormal,
                f"{name}/snr_db": _finite(made.snr_db),
                f"{name}/scale": made.scale,
                f"{name}/scaled_underflow": made.scaled_underflow,
                f"{name}/scaled_subnormal": made.scaled_subnormal,
                f"{name}/scaled_snr_db": _finite(made.scaled_snr_db),
            }
        if kind == "updates" and layer in snapshot.updates:
            u = snapshot.updates[layer].update
            row |= {"wanted_updates": u.wanted, "lost_updates": u.lost, "update_ratio": _finite(u.ratio)}
        if kind == "updates" and layer in snapshot.moments:
            m = snapshot.moments[layer]
            row |= {"moment_underflow": m.underflow_share, "moment_overflow": m.overflow_share}
        if kind == "activation gradients" and layer in snapshot.noise:
            row["accumulation_noise"] = snapshot.noise[layer]
        if kind == "activations":
            if layer in snapshot.dead:
                row |= {"dead_units": snapshot.dead[layer][0], "units": snapshot.dead[layer][1]}
            if layer in snapshot.levels:
                row["growth"] = growth(snapshot.levels[layer])
        rows.append(row)
    for (kind, layer), (dtype, largest) in snapshot.peaks.items():
        rows.append(
            {
                "step": snapshot.step,
                "kind": kind,
                "layer": layer,
                "dtype": dtype,
                "largest": largest,
                "headroom_up": headroom(dtype, largest),
            }
        )
    return rows


def headroom(dtype: str, largest: float) -> float | None:
    """Binades from a magnitude to the largest number of a format; None of zero."""
    if not largest:
        return None
    return _end(dtype) - math.log2(largest) if math.isfinite(largest) else -1.0


@functools.cache
def _end(dtype: str) -> float:
    return math.log2(number_format(dtype).max)


def _first(s: Statistics) -> int:
    """Biased exponent of the first filled bin."""
    filled = s.exponents.nonzero()[0]
    return int(filled[0]) if len(filled) else 0


def _trimmed(s: Statistics) -> list[int]:
    """The bins from the first filled one to the last."""
    filled = s.exponents.nonzero()[0]
    return [int(n) for n in s.exponents[filled[0] : filled[-1] + 1]] if len(filled) else []


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
