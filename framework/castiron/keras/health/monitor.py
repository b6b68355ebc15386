"""Numerical health of a training in TensorFlow, every so many steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from castiron.diagnostics import Finding
from castiron.health.advice import Advisor
from castiron.health.dynamics import SecondMoment, Update, ratio, second_moment
from castiron.health.snapshot import BackwardCast, LayerUpdate, ScaleHealth, Snapshot
from castiron.health.statistics import WHAT_IF, Statistics, measure
from castiron.keras.health.measure import read
from castiron.keras.health.order import noise_of
from castiron.keras.health.watch import Key, Watch
from castiron.keras.optimizers import BiasCorrectedAdam
from castiron.keras.step import StepCore
from castiron.policy import PrecisionPolicy
from castiron.policy.sections import DynamicScaling

_HISTOGRAMS_EVERY = 4
_WHAT_IF_AT = 2
"""Number of the measurement that first asks what other formats would make of the values."""


class HealthMonitor:
    """Says which steps are measured and how, and makes snapshots and advice of what their graphs gave.

    A measured step is a compiled function of its own; the others are as they were, and cost nothing.
    Measured are the first step and every `health.every`-th, or, where the optimizer adds gradients up over
    several, the next one that updates: the largest magnitudes that layers hand on; at every fourth
    measurement everything, in the same rhythm as in the other wing.
    """

    def __init__(self, core: StepCore, policy: PrecisionPolicy) -> None:
        self.core, self._policy = core, policy
        self._advisor = Advisor(policy)
        self._watches: dict[tuple[bool, bool], Watch] = {}
        self._measured = self._attempts = 0
        self._due = False
        self._findings: list[Finding] = []
        self.last: Snapshot | None = None
        """The latest snapshot."""

    def use(self, core: StepCore) -> None:
        """Look at the steps of this one from here on."""
        self.core = core
        self._watches = {}

    def watch(self, step: int) -> Watch | None:
        """How the step after so many committed ones is looked at; None: not at all."""
        self._attempts += 1
        self._due |= step % self._policy.health.every == 0
        if not self._due or not self._updates_next():
            return None
        looks = _looks(self._measured)
        if looks not in self._watches:
            large, full = looks
            self._watches[looks] = Watch(self.core, large=large, slow=full, formats=WHAT_IF if full else ())
        return self._watches[looks]

    def held(self, step: int) -> None:
        """The step was not applied: nothing of it is looked at but the loss scale."""
        self._look_at_scale(step, self._scaling())

    def committed(
        self, watch: Watch, given: Mapping[str, Any], step: int, rate: float, held: int
    ) -> Snapshot:
        """A measured step was applied.

        Args:
            given: what the graph gave (`Watch.outputs`).
            step: committed steps, this one included.
            rate: learning rate of the step.
            held: steps held so far.
        """
        self._measured += 1
        self._due = False
        scaling = self._scaling()
        if not watch.large:
            peaks: dict[Key, tuple[str, float]] = {}
            for name, value in given["peaks"].items():
                key = _key(name)
                peaks[key] = (watch.dtypes[key], float(value))
            snapshot = Snapshot(step, peaks=peaks, scaling=scaling, held=held)
        else:
            groups: dict[Key, Statistics] = {}
            for name, group in given["groups"].items():
                key = _key(name)
                asked = watch.formats if "sample" in group else ()
                made = read({k: v.numpy() for k, v in group.items()}, watch.dtypes[key], asked)
                if made is not None:
                    groups[key] = made
            samples = {path: {k: v.numpy() for k, v in of.items()} for path, of in given["samples"].items()}
            updates, moments, changes = self._updates(samples, watch, step, rate)
            for layer, change in changes.items():
                groups["updates", layer] = measure(change.astype(np.float32), formats=())
            snapshot = Snapshot(
                step=step,
                groups=groups,
                updates=updates,
                moments=moments,
                levels={
                    path: tuple(float(x) for x in v.numpy())
                    for path, v in given["levels"].items()
                    if v.shape[0] > 1
                },
                dead={p: (int(v.numpy().sum()), int(v.shape[0])) for p, v in given["dead"].items()},
                noise=noise_of(given["parts"], watch.summed_in),
                casts=tuple(
                    found
                    for of, cast in zip(watch.casts, given["casts"], strict=True)
                    if (found := _cast(of, cast)) is not None
                ),
                scaling=scaling,
                held=held,
                full=bool(watch.formats),
            )
        self.last = snapshot
        self._findings += self._advisor.look(snapshot)
        self._look_at_scale(step, scaling)
        return snapshot

    def news(self) -> list[Finding]:
        """What there is to say since the last call."""
        found, self._findings = self._findings, []
        return found

    def _updates_next(self) -> bool:
        """Whether the next step changes the parameters: an optimizer may add gradients up over several."""
        optimizer = self.core.updates.optimizer
        count = optimizer.gradient_accumulation_steps or 1
        return count == 1 or (int(optimizer._iterations.numpy()) + 1) % count == 0

    # --- details -----------------------------------------------------------------------------------

    def _updates(
        self, samples: Mapping[str, Mapping[str, np.ndarray]], watch: Watch, step: int, rate: float
    ) -> tuple[dict[str, LayerUpdate], dict[str, SecondMoment], dict[str, np.ndarray]]:
        """What the step did to each layer's parameters, to Adam's second moments, and the exact updates
        (samples)."""
        of_layer: dict[str, list[tuple[np.ndarray, np.ndarray, int, int]]] = {}
        dtypes: dict[str, str] = {}
        moments: dict[str, SecondMoment] = {}
        for path, layer in watch.paths().items():
            of = samples.get(path, {})
            if "gradient" not in of:
                continue
            before, after = (of[k].astype(np.float64) for k in ("before", "after"))
            change = self._exact(of, before, rate)
            exact = change is not None
            made = after - before if change is None else change
            # an algorithm that is not known here: what has a gradient was to change
            wanted = made != 0 if exact else (of["gradient"] != 0) & np.isfinite(of["gradient"])
            lost = wanted & (after == before)
            of_layer.setdefault(layer, []).append((made, before, int(wanted.sum()), int(lost.sum())))
            dtypes.setdefault(layer, watch.kept[path])
            if "first" in of and "second" in of:
                found, old = second_moment(of["first"], of["second"]), moments.get(layer)
                moments[layer] = found if old is None else _sum(old, found)
        changes = {layer: np.concatenate([m for m, *_ in parts]) for layer, parts in of_layer.items()}
        stochastic = self._policy.updates.rounding == "stochastic"
        updates = {
            layer: LayerUpdate(
                Update(
                    sum(w for _, _, w, _ in parts),
                    sum(n for _, _, _, n in parts),
                    ratio(changes[layer], np.concatenate([b for _, b, _, _ in parts])),
                ),
                dtypes[layer],
                stochastic,
                rate,
            )
            for layer, parts in of_layer.items()
        }
        return updates, moments, changes

    def _exact(self, of: Mapping[str, np.ndarray], before: np.ndarray, rate: float) -> np.ndarray | None:
        """The updates that the optimizer wanted, in float64 from its state after the step; None where the
        algorithm is not known here.

        Adam (Kingma & Ba 2015): u = -lr · (m / (1 - β₁ᵗ)) / (√(v / (1 - β₂ᵗ)) + ε) [- lr · λ · w];
        Keras's own adds ε / √(1 - β₂ᵗ) in its place.
        """
        optimizer = self.core.updates.optimizer
        if not isinstance(optimizer, keras.optimizers.Adam) or optimizer.amsgrad or "second" not in of:
            return None
        t = float(optimizer.iterations.numpy())
        first, second = 1 - float(optimizer.beta_1) ** t, 1 - float(optimizer.beta_2) ** t
        eps = float(optimizer.epsilon)
        if not isinstance(optimizer, BiasCorrectedAdam):
            eps = eps / second**0.5
        made: np.ndarray = -rate * (of["first"] / first) / (np.sqrt(of["second"] / second) + eps)
        if optimizer.weight_decay:
            made = made - rate * float(optimizer.weight_decay) * before
        return made

    def _scaling(self) -> ScaleHealth:
        scaler, scaling = self.core.scaler, self._policy.scaling
        if not scaler.active:
            return ScaleHealth("none")
        counts = scaler.counts()
        floor = scaling.min if isinstance(scaling, DynamicScaling) else 1.0
        return ScaleHealth(
            scaler.kind, scaler.get_scale(), float(floor), counts["overflows"], counts["at_floor"]
        )

    def _look_at_scale(self, step: int, scaling: ScaleHealth) -> None:
        self._findings += self._advisor.look_at_scale(step, self._attempts, scaling)


def _looks(number: int) -> tuple[bool, bool]:
    """Whether a measurement is of everything, and whether it also asks what other formats would make of the
    values, and looks at what changes slowly. As in the other wing: not at the very first, a short run is not
    to pay for it."""
    large = number % _HISTOGRAMS_EVERY == 0
    early = number == _WHAT_IF_AT
    count = number // _HISTOGRAMS_EVERY
    return large or early, early or (large and count > 1 and count & (count - 1) == 0)


def _cast(formats: tuple[str, str], given: Mapping[str, Any]) -> BackwardCast | None:
    wide, narrow = (
        read({k: v.numpy() for k, v in given[side].items()}, name)
        for side, name in zip(("wide", "narrow"), formats, strict=True)
    )
    if wide is None or narrow is None:
        return None
    lost = max(wide.live - narrow.live - narrow.non_finite, 0)
    return BackwardCast(formats[1], wide.live, lost, wide.largest, wide.quantile(0.01))


def _key(name: str) -> Key:
    kind, _, path = name.partition("|")
    return kind, path  # type: ignore[return-value]


def _sum(a: SecondMoment, b: SecondMoment) -> SecondMoment:
    return SecondMoment(
        a.moving + b.moving, a.underflow + b.underflow, a.overflow + b.overflow, a.size + b.size
    )
