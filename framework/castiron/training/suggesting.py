"""A policy for a recipe on this machine, found by measuring and shown by a side-by-side run.

The formats that the device computes natively, and whose ranges hold what a calibration measured (layers that
they do not hold are kept in float32), are timed; the fastest is trained beside float32 from several seeds.
It is proposed where it is faster, and its loss differs from float32's by no more than float32's own losses
differ between seeds.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from castiron.diagnostics import Finding, HardwareError, PlanError
from castiron.policy import PrecisionPolicy, resolve
from castiron.training.backend import Job, load_backend
from castiron.training.calibration import Calibrator, Measured, Trial, calibrator, wide_layers
from castiron.training.config_file import LoadedConfig, load_config
from castiron.training.run_directory import RunDirectory

CANDIDATES: dict[str, str] = {
    "float8-mixed": "float8_e4m3fn",
    "bf16-mixed": "bfloat16",
    "fp16-mixed": "float16",
    "tf32": "",
}
"""Preset → the format whose ranges must hold what layers hand on; tf32 has those of float32."""
FASTER = 0.97
"""A step must take at most this share of float32's, or float32 stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One preset that was looked at."""

    preset: str
    policy: PrecisionPolicy | None = None
    """With the layer rules it needs; None where it was refused."""
    wide: tuple[str, ...] = ()
    """Layers that are kept in float32."""
    refused: str = ""
    """Why it was not tried, or not taken."""
    step_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Side by side: losses at the end of each run, seed by seed, and times of a step."""

    seeds: tuple[int, ...]
    steps: int
    float32: tuple[float, ...]
    proposed: tuple[float, ...]
    float32_ms: float
    proposed_ms: float

    @property
    def noise(self) -> float:
        """How far float32's losses lie apart between seeds."""
        return max(self.float32) - min(self.float32)

    @property
    def difference(self) -> float:
        """Mean loss of the proposed policy, less that of float32."""
        return sum(self.proposed) / len(self.proposed) - sum(self.float32) / len(self.float32)

    @property
    def holds(self) -> bool:
        """Whether the proposed policy ends within the noise, or better."""
        return math.isfinite(self.difference) and self.difference <= self.noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """What is proposed, and everything that it follows from."""

    preset: str
    policy: PrecisionPolicy
    """The preset with its layer rules."""
    candidates: tuple[Candidate, ...]
    float32_ms: float
    """A step in float32, timed beside the candidates."""
    proof: Proof | None = None
    """None where float32 itself is proposed."""
    findings: tuple[Finding, ...] = ()
    """What the calibration warns of."""
    device: str = ""
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def gain(self) -> float:
        """Time of a step in float32 over that under the policy; 1 where float32 is proposed."""
        return self.proof.float32_ms / self.proof.proposed_ms if self.proof else 1.0

    def precision(self) -> dict[str, Any] | str:
        """The `precision` of a config."""
        rules = {path: {"compute": rule.compute} for path, rule in self.policy.layers.items()}
        return {"preset": self.preset, "layers": rules} if rules else self.preset


def suggest(
    source: str,
    overrides: Sequence[str] = (),
    *,
    batches: int = 8,
    steps: int = 60,
    seeds: int = 3,
    say: Callable[[str], None] = lambda _: None,
) -> Suggestion:
    """Calibrate, propose, and prove.

    Args:
        source: a config, or a recipe.
        batches: that ranges are measured on.
        steps: of each training of the proof; a third of it times a candidate.
        seeds: how many, from the config's own on.
        say: told what is done.

    Raises:
        CastironError: the config or the data are refused, or the wing cannot measure.
    """
    loaded = load_config(source, [*overrides, "precision=float32"])
    with tempfile.TemporaryDirectory(prefix="castiron-suggest-") as folder, loaded.placing():
        bench = _Bench(source, list(overrides), RunDirectory(Path(folder)), loaded)
        say(f"Measuring ranges on {batches} batches in float32.")
        measured = bench.wing.measure(bench.job(), batches)
        found = [bench.candidate(preset, measured) for preset in CANDIDATES]
        able = [c for c in found if c.policy is not None]
        plain = bench.float32
        timing = max(steps // 3, 8)
        say(f"Timing {timing} steps of {', '.join(['float32', *(c.preset for c in able)])}.")
        base = bench.trial(plain, timing, loaded.config.seed).step_ms
        timed: list[Candidate] = []
        for c in found:
            if c.policy is None:
                timed.append(c)
                continue
            took = bench.trial(c.policy, timing, loaded.config.seed)
            slow = took.step_ms > FASTER * base
            why = f"not faster here: {took.step_ms:.1f} ms a step, float32 {base:.1f} ms" if slow else ""
            timed.append(
                Candidate(preset=c.preset, policy=c.policy, wide=c.wide, refused=why, step_ms=took.step_ms)
            )
        ready = sorted((c for c in timed if not c.refused), key=lambda c: c.step_ms or math.inf)
        proof: Proof | None = None
        preset, policy = "float32", plain
        notes: list[str] = []
        for c in ready:
            assert c.policy is not None
            say(f"Proving {c.preset}: {steps} steps beside float32, {seeds} seeds each.")
            tried = bench.prove(c.policy, steps, [loaded.config.seed + i for i in range(seeds)])
            if tried.holds and tried.proposed_ms <= tried.float32_ms:
                preset, policy, proof = c.preset, c.policy, tried
                break
            notes.append(
                f"{c.preset} was not taken: its loss is {tried.difference:+.2g} from float32's, whose seeds "
                f"lie {tried.noise:.2g} apart; {tried.proposed_ms:.1f} ms a step, float32 "
                f"{tried.float32_ms:.1f} ms."
            )
        return Suggestion(
            preset=preset,
            policy=policy,
            candidates=tuple(timed),
            float32_ms=base,
            proof=proof,
            findings=measured.findings,
            device=bench.capability.name,
            notes=tuple(notes),
        )


class _Bench:
    """A recipe that is measured and trained for a while, again and again, in one folder."""

    def __init__(self, source: str, overrides: list[str], run: RunDirectory, loaded: LoadedConfig) -> None:
        self._source, self._overrides, self._run, self._loaded = source, overrides, run, loaded
        backend = load_backend(loaded.config.backend)
        self.wing: Calibrator = calibrator(backend)
        self.capability = backend.capability(loaded.config.trainer.device)
        self.float32 = loaded.config.precision

    def job(self, policy: PrecisionPolicy | None = None, *settings: str) -> Job:
        loaded = load_config(self._source, [*self._overrides, "precision=float32", *settings])
        config = loaded.config
        if policy is not None:
            kept = policy.replace(guard=config.guard, health=config.health, enforce=config.audit)
            config = config.model_copy(update={"precision": kept})
        return Job(config=config, recipe=loaded.recipe, run=self._run)

    def candidate(self, preset: str, measured: Measured) -> Candidate:
        """The preset with the layer rules that it needs, or why it is refused."""
        name = CANDIDATES[preset]
        wide = wide_layers(measured.snapshots, name) if name else []
        paths = {layer.path for layer in measured.layers}
        wide = [layer for layer in wide if layer in paths]
        able = {layer.path for layer in measured.layers if layer.family is not None}
        if name and able and able <= set(wide):
            return Candidate(preset=preset, refused=f"{name} holds the values of no layer", wide=tuple(wide))
        try:
            policy = PrecisionPolicy.preset(preset, layers={path: {"compute": "float32"} for path in wide})
            _, notes = resolve(policy, measured.layers, self.capability)
        except (HardwareError, PlanError, ValueError) as e:
            found = getattr(e, "findings", ())
            return Candidate(preset=preset, refused=str(found[0].message if found else e), wide=tuple(wide))
        slow = [f for f in notes if f.code == "H702"]
        if slow:
            return Candidate(preset=preset, refused=slow[0].message, wide=tuple(wide))
        return Candidate(preset=preset, policy=policy, wide=tuple(wide))

    def trial(self, policy: PrecisionPolicy, steps: int, seed: int) -> Trial:
        fixed = (f"trainer.max_steps={steps}", "trainer.max_epochs=null", f"seed={seed}")
        return self.wing.trial(self.job(policy, *fixed))

    def prove(self, policy: PrecisionPolicy, steps: int, seeds: Sequence[int]) -> Proof:
        """Trainings in turns, so that what else the machine does slows both alike."""
        plain, proposed = [], []
        for seed in seeds:
            plain.append(self.trial(self.float32, steps, seed))
            proposed.append(self.trial(policy, steps, seed))
        return Proof(
            seeds=tuple(seeds),
            steps=steps,
            float32=tuple(t.end for t in plain),
            proposed=tuple(t.end for t in proposed),
            float32_ms=min(t.step_ms for t in plain),
            proposed_ms=min(t.step_ms for t in proposed),
        )
