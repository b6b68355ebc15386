"""A bad step as replay runs it: eagerly, as often as it takes, and each time put back.

A step that castiron takes apart is forward, loss and backward; what a `train_step` of the model's own does is
known only by running it whole, with its optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from castiron.keras.modules import own_variables, variables, walk
from castiron.keras.replay.calls import Call, Origin
from castiron.keras.replay.recorder import Recorder
from castiron.keras.replay.values import State, is_finite, state_of
from castiron.keras.snapshot import Snapshot
from castiron.keras.step import Forward, StepCore
from castiron.training.held import Verdict
from castiron.training.incident import Link

Seen = dict[str, list[str]]
"""What is bad after a step, as the guard sees it: loss, gradients … → names."""
Ends = tuple[list[Call | Origin], list[Link]]
"""What made the bad values that were seen, and the last station on the way there."""


class OwnStep(Protocol):
    """A `train_step` of a model's own, under guard."""

    @property
    def everything(self) -> Sequence[Any]:
        """tf.Variables of all that it may change."""

    @property
    def optimizers(self) -> Mapping[str, Any]:
        """Name, as it is told → optimizer."""

    @property
    def why_not_replayed(self) -> str:
        """Why it cannot be run again; empty where it can."""

    def run(self, data: Any) -> dict[str, dict[str, Any]]:
        """Run it. → what is watched (logs, parameters, buffers, optimizer) → name → tensor or tf.Variable."""


@dataclass(frozen=True, slots=True)
class ReplayStep:
    """A held step, and how to run it again. Everything is as before it."""

    core: StepCore
    forward: Forward
    batches: Sequence[Any]
    """Micro-batches, as tensors."""
    verdict: Verdict
    scale: float = 1.0
    """The loss scale it ran with."""
    own: OwnStep | None = None
    """The model's own `train_step`, where it has one; `forward` is not used then."""


class Run(Protocol):
    """How replay runs a step."""

    snapshot: Snapshot
    """All that a run changes."""
    optimizers: Mapping[str, Any] | None
    """Those that are part of the run."""

    def run(self, batch: Any) -> tuple[Seen, Any]:
        """Run a micro-batch. → what is bad, and what `ends` is to be given."""

    def run_recorded(self, recorder: Recorder, batch: Any) -> tuple[Seen, Any]:
        """The same, within `recorder.recording()`."""

    def ends(self, recorder: Recorder, seen: Seen, left: Any) -> Ends:
        """Where to look for what is to blame."""


class StepVariables:
    """The variables that a step reads, with what they are."""

    def __init__(self, core: StepCore, own: OwnStep | None) -> None:
        buffers = {id(v) for _, layer in walk(core.model) for v in own_variables(layer)[1]}
        named = variables(core.model)
        self.known = {
            id(v._value): (Origin("buffer" if id(v) in buffers else "parameter", n), v._value)
            for n, v in named.items()
        }
        """id → (what it is, tf.Variable)."""
        self.buffers = {
            o.name: v
            for o, v in self.known.values()
            if o.kind == "buffer"
            and v.dtype.is_floating
            and state_of(v.read_value(), masks=True) is State.GOOD
        }
        """Name → tf.Variable of the buffers that were finite."""
        for optimizer in () if own is None else own.optimizers.values():
            for v in optimizer.variables:
                self.known.setdefault(id(v._value), (Origin("state", v.path), v._value))

    def value(self, origin: Origin) -> Any:
        """The tf.Variable of an origin."""
        return next(v for o, v in self.known.values() if o == origin)


class LossRun:
    """Forward, loss and backward of a step that castiron takes apart."""

    optimizers: Mapping[str, Any] | None = None

    def __init__(self, step: ReplayStep, held: StepVariables) -> None:
        self._core, self._forward, self._held = step.core, step.forward, held
        self.snapshot = step.core.snapshot

    def run(self, batch: Any) -> tuple[Seen, Any]:
        loss, _, gradients = self._core._gradients(self._forward, batch)
        return self._seen(loss, gradients), (loss, gradients)

    def run_recorded(self, recorder: Recorder, batch: Any) -> tuple[Seen, Any]:
        # The tape's backward pass begins where forward has returned.
        def forward(given: Any) -> tuple[Any, Any]:
            result = self._forward(given)
            recorder.course.phase = "backward"
            return result

        loss, _, gradients = self._core._gradients(forward, batch)
        return self._seen(loss, gradients), (loss, gradients)

    def ends(self, recorder: Recorder, seen: Seen, left: Any) -> Ends:
        loss, gradients = left
        if "loss" in seen:
            found = [recorder.value_of(loss).source]
            tail = [Link(what="loss", phase="loss")]
        elif "gradients" in seen:
            names = set(seen["gradients"])
            pairs = [p for p in zip(self._core._names, gradients, strict=True) if p[0] in names]
            found = [recorder.value_of(g).source for _, g in pairs]
            tail = [Link(what=f"gradient of {seen['gradients'][0]}", phase="backward")]
        else:
            found = [recorder.value_in(self._held.buffers[n]).source for n in seen["buffers"]]
            tail = [Link(what=f"buffer {n}", phase="forward") for n in seen["buffers"]]
        return [e for e in found if e is not None], tail

    def _seen(self, loss: Any, gradients: Sequence[Any]) -> Seen:
        found: Seen = {}
        if not is_finite(loss):
            found["loss"] = ["loss"]
        pairs = zip(self._core._names, gradients, strict=True)
        if bad := [n for n, g in pairs if g is not None and not is_finite(g)]:
            found["gradients"] = bad
        if spoiled := [n for n, v in self._held.buffers.items() if not is_finite(v.read_value())]:
            found["buffers"] = spoiled
        return found


class WholeRun:
    """A `train_step` of the model's own, run whole."""

    def __init__(self, own: OwnStep) -> None:
        self._own = own
        self.snapshot = Snapshot(own.everything)
        self.optimizers: Mapping[str, Any] | None = own.optimizers

    def run(self, batch: Any) -> tuple[Seen, Any]:
        left = self._own.run(batch)
        seen: Seen = {}
        for what, named in left.items():
            # A variable is read now: the step is put back before it is explained.
            if bad := [n for n, t in named.items() if not is_finite(_now(t))]:
                seen[what] = bad
        return seen, left

    def run_recorded(self, recorder: Recorder, batch: Any) -> tuple[Seen, Any]:
        return self.run(batch)

    def ends(self, recorder: Recorder, seen: Seen, left: Any) -> Ends:
        found, tail = [], []
        for what, names in seen.items():
            for name in names:
                end = left[what][name]
                held = hasattr(end, "read_value")
                value = recorder.value_in(end) if held else recorder.value_of(end)
                found.append(value.source)
            word = {"logs": "log", "parameters": "parameter", "buffers": "buffer"}.get(what, "")
            phase = "loss" if what == "logs" else "forward" if what == "buffers" else "optimizer"
            tail.append(Link(what=f"{word} {names[0]}".strip(), phase=phase))
        return [e for e in found if e is not None], tail[:1]


def _now(value: Any) -> Any:
    return value.read_value() if hasattr(value, "read_value") else value
