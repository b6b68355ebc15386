"""What a wing measures before a policy is chosen: ranges without training, and short trials.

A wing that can has `measure` and `trial` beside the methods of `Backend`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from castiron.diagnostics import ConfigError, Finding, Place, finding
from castiron.health.snapshot import Snapshot
from castiron.health.statistics import WhatIf
from castiron.policy.modules import LayerInfo
from castiron.training.backend import Backend, Job

UNDERFLOW = 1e-4
"""Share of a layer's elements that may underflow in a format that is said to hold them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Ranges of a model on some batches, forward and backward; nothing was trained."""

    snapshots: tuple[Snapshot, ...]
    layers: tuple[LayerInfo, ...]
    findings: tuple[Finding, ...] = ()
    """Advice (N52x)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A short training."""

    losses: tuple[float, ...]
    """Of each step."""
    step_ms: float
    """Median time of a step, without the first ones."""
    held: int = 0

    @property
    def end(self) -> float:
        """Mean loss of the last quarter of the steps."""
        last = self.losses[-max(len(self.losses) // 4, 1) :]
        return sum(last) / len(last) if last else float("nan")


class Calibrator(Protocol):
    """What `castiron health` and `castiron suggest` ask of a wing."""

    def measure(self, job: Job, batches: int) -> Measured:
        """Forward and backward passes over so many training batches, under the job's policy."""

    def trial(self, job: Job) -> Trial:
        """Train as the job says, keep nothing."""


def calibrator(backend: Backend) -> Calibrator:
    """The wing as one that can measure.

    Raises:
        ConfigError: it cannot.
    """
    if not hasattr(backend, "measure") or not hasattr(backend, "trial"):
        raise ConfigError(
            finding(
                "X812",
                f"The backend '{backend.name}' does not measure ranges without training yet.",
                place=Place(key="backend"),
                remedy="Use backend: torch for this; the ranges of a recipe are the same.",
            )
        )
    return cast(Calibrator, backend)


def worst(snapshots: Sequence[Snapshot], name: str) -> dict[str, tuple[float, float]]:
    """Layer → largest share that overflows in a format, and largest that underflows, of activations and their
    gradients over all snapshots. Gradients count under the best scale, as the loss can be scaled; all values
    do in float8, whose products scale each tensor."""
    found: dict[str, tuple[float, float]] = {}
    for snapshot in snapshots:
        for (kind, layer), s in snapshot.groups.items():
            made: WhatIf | None = s.what_if.get(name)
            if made is None or not s.live or kind not in ("activations", "activation gradients"):
                continue
            scaled = kind == "activation gradients" or name.startswith("float8")
            over = 0.0 if scaled else made.overflow
            under = made.scaled_underflow if scaled else made.underflow
            path = layer.partition("[")[0]
            known = found.get(path, (0.0, 0.0))
            found[path] = (max(known[0], over), max(known[1], under))
    return found


def wide_layers(snapshots: Sequence[Snapshot], name: str) -> list[str]:
    """Layers whose values a format does not hold: they overflow, or more than a ten-thousandth underflows."""
    return sorted(
        layer for layer, (over, under) in worst(snapshots, name).items() if over > 0 or under >= UNDERFLOW
    )


def what_if_rows(snapshots: Sequence[Snapshot], formats: Sequence[str]) -> list[tuple[str, ...]]:
    """A row per layer: what each format would make of its values."""
    tables: dict[str, dict[str, tuple[float, float]]] = {f: worst(snapshots, f) for f in formats}
    layers: dict[str, Any] = dict.fromkeys(layer for made in tables.values() for layer in made)
    return [(layer or "(model)", *(_verdict(tables[f].get(layer)) for f in formats)) for layer in layers]


def _verdict(shares: tuple[float, float] | None) -> str:
    if shares is None:
        return ""
    over, under = shares
    if over:
        return f"{100 * over:.2g} % overflow"
    return f"{100 * under:.2g} % underflow" if under >= UNDERFLOW else "holds"
