"""What the front door asks of a wing: the Backend protocol, and the plain data that goes in and comes out.

A wing (`castiron.lightning`, `castiron.keras`) is reached by name only, so that nothing below it imports a
framework. It does the arithmetic and owns no terminal: what it has to say goes to the job's `Reporter`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from castiron.diagnostics import ConfigError, Finding, Place, finding
from castiron.training.ranks import Alone, Peers, Rank

if TYPE_CHECKING:
    from castiron.data import DataReport
    from castiron.policy import PrecisionPolicy
    from castiron.policy.hardware import DeviceCapability
    from castiron.policy.plan import Plan
    from castiron.training.audit import AuditReport
    from castiron.training.config import RunConfig
    from castiron.training.incident import Attribution, Incident
    from castiron.training.incident_folder import IncidentFolder
    from castiron.training.manifest_check import OnMismatch
    from castiron.training.recipe import Recipe
    from castiron.training.run_directory import RunDirectory

BackendName = Literal["torch", "tensorflow"]
Status = Literal["completed", "stopped", "interrupted", "failed"]
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One glance at a running training; made when something is logged, never for every step."""

    step: int
    """Committed optimizer steps so far."""
    steps: int | None
    """Steps in all; None where the end is not known."""
    epoch: int
    """From 1."""
    epochs: int | None
    loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Latest validation metrics, `{name: value}`."""
    items_per_s: float | None = None
    scale: float | None = None
    """Loss scale; None where nothing is scaled."""
    held: int = 0
    """Held steps so far."""


class Reporter(Protocol):
    """Where a wing says what it does: one live bar on a terminal, plain lines elsewhere, or nothing."""

    verbosity: Literal["quiet", "normal", "verbose"]

    def say(self, text: str) -> None:
        """One line for the user (not shown when quiet)."""

    def findings(self, findings: Sequence[Finding]) -> None:
        """Warnings and errors, shown also when quiet."""

    def plan(self, plan: Plan) -> None:
        """The plan, in brief; in full when verbose."""

    def data(self, reports: Mapping[str, DataReport]) -> None:
        """The data report of each split."""

    def begin(self, progress: Progress) -> None:
        """Training starts; the bar appears."""

    def update(self, progress: Progress) -> None:
        """Something was logged; cheap, but at most a few times a second."""

    def end(self) -> None:
        """Training ended, well or not; the bar goes away. Calling it twice does no harm."""


class Silent:
    """The reporter that says nothing."""

    verbosity: Literal["quiet", "normal", "verbose"] = "quiet"

    def say(self, text: str) -> None: ...
    def findings(self, findings: Sequence[Finding]) -> None: ...
    def plan(self, plan: Plan) -> None: ...
    def data(self, reports: Mapping[str, DataReport]) -> None: ...
    def begin(self, progress: Progress) -> None: ...
    def update(self, progress: Progress) -> None: ...
    def end(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One thing to do with a run."""

    config: RunConfig
    """Resolved and validated; `config.model` is an instance of `recipe.Config`."""
    recipe: type[Recipe]
    run: RunDirectory
    """Exists. `config.yaml` and `environment.json` are written by the caller, and `summary.json` from the
    outcome; `plan.json`, `data.json`, `metrics.jsonl`, `events.*`, `checkpoints/` and `incidents/` are the
    backend's."""
    checkpoint: Path | None = None
    """`fit`: resume from it; None starts anew. `evaluate`, `predict`: the weights to load."""
    weights: Path | None = None
    """A file of weights of any origin: `fit` starts with them, `evaluate` and `predict` use them instead."""
    on_mismatch: OnMismatch = "refuse"
    """What is done where a checkpoint's tensors have other formats than the policy declares."""
    reporter: Reporter = field(default_factory=Silent)
    peers: Peers = field(default_factory=Alone)
    """The processes that train it together. Of several, only rank 0 writes into the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a training ended; `summary.json` is made of it."""

    status: Status
    """completed (also by early stopping); stopped: early, by a signal or a limit, resumable;
    interrupted: by Ctrl-C, resumable; failed: on an incident."""
    steps: int
    held_steps: int = 0
    incidents: int = 0
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """`{"train": {"loss": …}, "validation": {…}, "test": {…}}`; splits that were not run are left out."""
    duration_s: float = 0.0
    """Of the training itself, without set-up."""
    items_per_s: float = 0.0
    message: str = ""
    """Why it ended, one sentence; empty for the ordinary end."""
    checkpoint: Path | None = None
    """The best checkpoint (the last, where nothing is monitored)."""
    findings: tuple[Finding, ...] = ()
    """What stopped it, for `failed`."""
    incident: Incident | None = None
    """The held step that stopped it."""
    incident_folder: Path | None = None
    """Its folder."""

    @property
    def exit_code(self) -> int:
        return {"completed": 0, "failed": 1, "stopped": 75, "interrupted": 130}[self.status]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a run would be, found without training (`--dry-run`, `data check`)."""

    plan: Plan
    data: Mapping[str, DataReport]
    parameters: int
    """Trainable elements of the model."""
    steps_per_epoch: int
    steps: int
    """Optimizer steps in all."""
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedies:
    """What to try against an incident: each of them by itself."""

    policies: Sequence[PrecisionPolicy] = ()
    """Run the step under this policy."""
    device: str | None = None
    """Run it on this device ("cpu", "cuda")."""
    promote: Sequence[str] = ()
    """Run it with this layer (a path or a glob, as in a policy's `layers`) in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What became of one remedy."""

    tried: str
    """policy float32, device cpu, promote head."""
    goes_away: bool
    """Whether the step is finite with it."""
    remains: Attribution | None = None
    """What is to blame then, where it is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """An incident, run again."""

    incident: Incident
    """As it was recorded."""
    replay: Attribution
    """What running it again found."""
    remedies: tuple[Tried, ...] = ()
    notes: tuple[str, ...] = ()
    """How the replay differs from the step, as far as is known: another device, other versions."""

    def __str__(self) -> str:
        """The record as a block, what the replay has shown, and what became of each remedy."""
        from castiron.training.incident_text import as_text, replayed_lines

        return "\n".join([as_text(self.incident), "", *(line for line, _ in replayed_lines(self))])

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "incident": self.incident.model_dump(mode="json"),
            "replay": self.replay.model_dump(mode="json"),
            "remedies": [
                {
                    "tried": t.tried,
                    "goes_away": t.goes_away,
                    "remains": t.remains.model_dump(mode="json") if t.remains else None,
                }
                for t in self.remedies
            ],
            "notes": list(self.notes),
        }


class Backend(Protocol):
    """A wing. Errors of the user are raised as `CastironError`; nothing is printed."""

    name: BackendName

    def capability(self, device: str = "auto") -> DeviceCapability:
        """What the device ("auto", "cpu", "cuda") computes in which format."""

    def preview(self, job: Job) -> Preview:
        """Load the data, build the model, resolve the plan; train nothing, write only below `job.run`."""

    def fit(self, job: Job) -> Outcome:
        """Train. Ctrl-C and SIGTERM leave a resumable checkpoint and come back as an outcome."""

    def peers(self, here: Rank, config: RunConfig) -> AbstractContextManager[Peers]:
        """The processes that train together, connected; `fit` of a job with them is called by each.

        Args:
            here: this process's place among them.
            config: `trainer.timeout` says how many seconds one waits for the others before it gives up
                (X831).

        Raises:
            ConfigError: the wing cannot connect what was started in this way (X815).
        """

    def evaluate(self, job: Job, splits: Sequence[Split] = ("test",)) -> dict[str, dict[str, float]]:
        """`{split: {metric: value}}` of `job.checkpoint`, in the run's own policy."""

    def audit(self, job: Job) -> AuditReport:
        """Trace one training step of the recipe, and hold it against the plan; train nothing."""

    def audit_model(self, model: Any, inputs: Sequence[str], policy: PrecisionPolicy) -> AuditReport:
        """Trace one step of any model of the framework on inputs of these formats (`float32[8,16,3]`)."""

    def predict(self, job: Job, inputs: Sequence[str | Mapping[str, Any]]) -> list[dict[str, Any]]:
        """One JSON-ready mapping per input. A text is the recipe's text field; a mapping names its fields."""

    def replay(
        self, folder: IncidentFolder, config: RunConfig, recipe: type[Recipe], remedies: Remedies
    ) -> Replayed:
        """Run a recipe's incident again, from its folder alone, and try remedies.

        `config` is the one in the folder; `recipe` is the class that it names. Writes nothing.
        """


_HOMES: dict[str, tuple[str, str, str, str]] = {
    # name: module, class, package that must be there, what to install
    "torch": ("castiron.lightning.backend", "LightningBackend", "torch", "pip install castiron"),
    "tensorflow": (
        "castiron.keras.backend",
        "KerasBackend",
        "tensorflow",
        "pip install 'castiron[tensorflow]'",
    ),
}


def load_backend(name: str) -> Backend:
    """The wing of this name. Imports its framework.

    Raises:
        ConfigError: no such backend, or its packages are not installed; says what to install.
    """
    place = Place(key="backend")
    if name not in _HOMES:
        expected = " or ".join(f"'{n}'" for n in _HOMES)
        raise ConfigError(
            finding("X805", "No such backend.", place=place, expected=expected, received=f"'{name}'")
        )
    module, cls, package, install = _HOMES[name]
    if not _installed(package):
        message = f"The backend '{name}' needs the package '{package}', which is not installed."
        raise ConfigError(finding("X812", message, place=place, remedy=f"Run: {install}"))
    if not _installed(module):
        message = f"This version of castiron has no backend '{name}'."
        raise ConfigError(finding("X812", message, place=place, remedy="Install a version that has it."))
    backend: Backend = getattr(importlib.import_module(module), cls)()
    return backend


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
