"""One recipe under several policies, side by side: same seed, batches and initial weights.

Each policy trains for some steps; at some of them its layers are looked at on one batch, and held against
those of the widest policy.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from castiron.diagnostics import CastironError, ConfigError, Finding, Place, finding
from castiron.formats import number_format
from castiron.health.differences import Difference, difference, farthest, first_parting
from castiron.policy import PrecisionPolicy
from castiron.training.backend import Job, load_backend
from castiron.training.config_file import LoadedConfig, load_config
from castiron.training.run_directory import RunDirectory
from castiron.training.side import WHATS, Comparer, Probe, Stop, Trained, What, comparer


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductError:
    """What rounding did to one matrix product whose operands are those of the widest policy, rounded once."""

    layer: str
    n: int
    """Products in a sum."""
    error: float
    """``‖ŷ − y‖ / ‖ |x||W|ᵀ ‖``: at most γₙ, and what rounding operands and result adds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One policy."""

    name: str
    """As it was asked for."""
    policy: PrecisionPolicy
    refused: Finding | None = None
    """Why it was not run; what follows is empty then."""
    stopped: Stop | None = None
    """The incident that ended it early; what came before it is there."""
    losses: tuple[float, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)
    step_ms: float = math.nan
    differences: Mapping[int, Mapping[What, Mapping[str, Difference]]] = field(default_factory=dict)
    """Step → what → layer (or parameter) → how far it lies from the widest policy's."""
    products: tuple[ProductError, ...] = ()
    """At step 0."""
    same_batches: bool = True
    """Whether each step took the rows that it took under the widest policy."""
    notes: tuple[str, ...] = ()

    @property
    def status(self) -> Literal["ran", "refused", "stopped"]:
        return "refused" if self.refused else "stopped" if self.stopped else "ran"

    @property
    def ended(self) -> Finding | None:
        """Why it did not run to its end."""
        return self.refused or (self.stopped.finding if self.stopped else None)

    def first(self, what: What, step: int = 0) -> str | None:
        """The first layer, in the order of the pass, that is more than rounded."""
        return first_parting(self.differences.get(step, {}).get(what, {}))

    def farthest(self, what: What, step: int = 0) -> str | None:
        """The layer that lies farthest away."""
        return farthest(self.differences.get(step, {}).get(what, {}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Everything that was found."""

    source: str
    recipe: str
    seed: int
    steps: int
    device: str
    reference: str
    """Name of the widest side that ran: the others are held against it. Empty where none did."""
    sides: tuple[Side, ...]
    """In the order in which they were asked for."""
    types: Mapping[str, str] = field(default_factory=dict)
    """Path of each layer → its class."""

    def of(self, name: str) -> Side:
        return next(s for s in self.sides if s.name == name)

    @property
    def compared(self) -> tuple[Side, ...]:
        """The sides that ran, but for the widest."""
        return tuple(s for s in self.sides if not s.refused and s.name != self.reference)

    def label(self, layer: str) -> str:
        """A layer with its class: `head (Linear)`."""
        kind = self.types.get(layer.partition("[")[0].partition(" (call")[0])
        return f"{layer or '(model)'} ({kind})" if kind else layer

    def verdict(self, side: Side) -> list[str]:
        """Why a side ended early, and where it parts from the widest, in sentences."""
        ended = []
        if side.refused:
            ended = [f"{side.name} was not run: {side.refused}"]
        elif side.stopped:
            ended = [f"{side.name} was stopped: {side.stopped.finding}"]
        if not side.differences:
            return ended
        told = [*ended, self._forward(side)]
        first = side.first("activation gradients")
        if first is not None:
            d = side.differences[0]["activation gradients"][first]
            told.append(f"Backward, the first gradient apart is that of {self.label(first)}: {_size(d)}.")
        wrong = side.farthest("gradients")
        if wrong is not None:
            d = side.differences[0]["gradients"][wrong]
            told.append(f"The parameter whose gradient lies farthest away is {wrong}: {_size(d)}.")
        return [*told, *side.notes]

    def _forward(self, side: Side) -> str:
        layers = side.differences[0]["activations"]
        first, last = side.first("activations"), side.farthest("activations")
        if last is None:
            return f"Before the first step every layer of {side.name} is {self.reference}'s, bit for bit."
        if first is None:
            return (
                f"Before the first step every layer of {side.name} is {self.reference}'s, rounded to its "
                f"format and nothing else; farthest is {self.label(last)}: {_size(layers[last])}."
            )
        d = layers[first]
        times = f"{d.excess:.1f} times what rounding to {d.format} takes away" if d.rounding else ""
        text = f"{side.name} and {self.reference} part in {self.label(first)}: {_size(d)}"
        text += f", {times}." if times else "."
        if last != first:
            text += f" Farthest is {self.label(last)}: {_size(layers[last])}."
        return text

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, but for NaN and infinities."""
        return {
            "source": self.source,
            "recipe": self.recipe,
            "seed": self.seed,
            "steps": self.steps,
            "device": self.device,
            "reference": self.reference,
            "sides": [self._side(s) for s in self.sides],
        }

    def _side(self, s: Side) -> dict[str, Any]:
        return {
            "name": s.name,
            "policy": str(s.policy),
            "status": s.status,
            "code": s.ended.code if s.ended else None,
            "step": s.stopped.step if s.stopped else len(s.losses),
            "told": s.ended.sentence() if s.ended else "",
            "same_batches": s.same_batches,
            "losses": list(s.losses),
            "metrics": dict(s.metrics),
            "memory": dict(s.memory),
            "step_ms": s.step_ms,
            "parts": {what: s.first(what) for what in WHATS} if s.differences else None,
            "farthest": {what: s.farthest(what) for what in WHATS} if s.differences else None,
            "verdict": self.verdict(s),
            "products": [{"layer": p.layer, "n": p.n, "error": p.error} for p in s.products],
            "differences": {
                str(step): {
                    what: {layer: d.as_dict() for layer, d in layers.items()}
                    for what, layers in found.items()
                }
                for step, found in s.differences.items()
            },
        }


def compare(
    source: str,
    policies: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    steps: int = 100,
    say: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Train each policy for so many steps, and hold its layers against those of the widest.

    A policy that the device refuses, or that does not fit the model, is a side with the reason. The widest
    that runs is what the others are held against.

    Args:
        source: a config, or a recipe.
        policies: presets, or the short form of a policy.
        overrides: of the config; its own `precision` is replaced.
        say: told what is done.

    Raises:
        ConfigError: a policy is none (X8xx), fewer than two are named (X803), or the wing cannot compare
            (X812).
        CastironError: the config or the data are refused.
    """
    names = list(dict.fromkeys(policies))
    if len(names) < 2:
        raise ConfigError(
            finding(
                "X803",
                "There is nothing to compare.",
                place=Place(key="--policies"),
                expected="two policies or more, such as float64,float32,bf16-mixed",
                received=", ".join(names) or "none",
            )
        )
    fixed = [*overrides, f"trainer.max_steps={steps}", "trainer.max_epochs=null"]
    loaded = {name: load_config(source, [*fixed, f"precision={_quoted(name)}"]) for name in names}
    wide = sorted(names, key=lambda n: _width(loaded[n].config.precision), reverse=True)
    plain = loaded[wide[0]]
    backend = load_backend(plain.config.backend)
    wing = comparer(backend)
    at = looks_at(steps)
    sides: dict[str, Side] = {}
    reference = ""
    base: Trained | None = None
    types: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="castiron-compare-") as folder, plain.placing():
        for name in wide:
            say(f"{name}: {steps} steps.")
            policy = loaded[name].config.precision
            try:
                trained = _train(wing, loaded[name], Path(folder), at)
            except CastironError as e:
                if not e.findings or e.findings[0].code[0] not in "HL":
                    raise
                sides[name] = Side(name=name, policy=policy, refused=e.findings[0])
                continue
            if not reference:
                reference, types = name, dict(trained.types)
            sides[name] = _side(name, policy, trained, base)
            base = base or trained
    return Comparison(
        source=source,
        recipe=plain.recipe.name,
        seed=plain.config.seed,
        steps=steps,
        device=backend.capability(plain.config.trainer.device).name,
        reference=reference,
        sides=tuple(sides[name] for name in names),
        types=types,
    )


def looks_at(steps: int) -> tuple[int, ...]:
    """After which steps the layers are looked at: 0, the powers of 4, and the last."""
    found = {0, steps}
    step = 1
    while step < steps:
        found.add(step)
        step *= 4
    return tuple(sorted(found))


def _train(wing: Comparer, loaded: LoadedConfig, folder: Path, at: Sequence[int]) -> Trained:
    with RunDirectory(folder).claimed() as run:
        return wing.side(Job(config=loaded.config, recipe=loaded.recipe, run=run), at)


def _side(name: str, policy: PrecisionPolicy, trained: Trained, base: Trained | None) -> Side:
    """Args: base: of the widest policy; None where this is it."""
    wide = {probe.step: probe for probe in base.probes} if base else {}
    notes = []
    other = _first_other(trained.batches, base.batches) if base else None
    if other is not None:
        notes.append(f"From step {other} on its batches are others: differences are not those of arithmetic.")
    random = sorted({layer for probe in trained.probes for layer in probe.random})
    if random and wide:
        notes.append(f"These layers drew random numbers while they were looked at: {', '.join(random)}.")
    found = {p.step: _differences(p, wide[p.step]) for p in trained.probes if p.step in wide}
    products = [_products(p, wide[0], found[0]["activations"]) for p in trained.probes if p.step == 0 in wide]
    return Side(
        name=name,
        policy=policy,
        stopped=trained.stopped,
        losses=trained.losses,
        metrics=trained.metrics,
        memory=trained.memory,
        step_ms=trained.step_ms,
        differences=found,
        products=tuple(p for some in products for p in some),
        same_batches=other is None,
        notes=tuple(notes),
    )


def _first_other(mine: Sequence[str], theirs: Sequence[str]) -> int | None:
    """The first step, counted from 1, whose batch is another one; None where there is none."""
    pairs = enumerate(zip(mine, theirs, strict=False), 1)
    return next((step for step, (a, b) in pairs if a != b), None)


def _differences(probe: Probe, wide: Probe) -> dict[What, dict[str, Difference]]:
    found: dict[What, dict[str, Difference]] = {}
    for what in WHATS:
        mine, theirs = probe.seen.get(what, {}), wide.seen.get(what, {})
        found[what] = {
            layer: difference(mine[layer].values, tensor.values, mine[layer].format)
            for layer, tensor in theirs.items()
            if layer in mine and mine[layer].values.shape == tensor.values.shape
        }
    return found


def _products(probe: Probe, wide: Probe, activations: Mapping[str, Difference]) -> list[ProductError]:
    """Products of the same operands: those of the widest, at most rounded to their format."""
    found = []
    for layer, mine in probe.products.items():
        theirs, d = wide.products.get(layer), activations.get(layer)
        if theirs is None or d is None or not theirs.condition:
            continue
        pairs = ((mine.x, theirs.x), (mine.weight, theirs.weight))
        if all(difference(a.values, b.values, a.format).step != "parted" for a, b in pairs):
            error = d.relative_norm / theirs.condition
            found.append(ProductError(layer=layer, n=mine.n, error=error))
    return sorted(found, key=lambda p: p.n)


def _width(policy: PrecisionPolicy) -> tuple[int, ...]:
    """Larger for a wider policy: bits of fraction and exponent of what it computes in, stores, hands on."""
    compute, param, output = (number_format(n) for n in (policy.compute, policy.param, policy.output))
    return tuple(
        n for of in (compute, param, output) for n in (of.fraction_bits, of.exponent_bits)
    )  # fmt: skip


def _quoted(name: str) -> str:
    return '"' + name.replace('"', "") + '"'


def _size(d: Difference) -> str:
    """A difference in a few words."""
    if math.isnan(d.relative_norm):
        return f"nothing is finite in {d.format}"
    lost = f"{d.not_finite:,} of {d.size:,} elements not finite, " if d.not_finite else ""
    return (
        f"{lost}relative norm {d.relative_norm:.2g}, median {d.ulps_median:.2g} ulps of {d.format}, "
        f"cosine 1 − {max(1 - d.cosine, 0.0):.2g}"
    )
