"""An incident run again: the model made anew, put into the state of before the step, and the step taken.

Every run has a model of its own, so that a remedy starts from where the step started.
"""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import castiron.torch.replay
from castiron.data import Schema
from castiron.diagnostics import CastironError, Place
from castiron.lightning.module import RecipeModule
from castiron.lightning.quiet import quiet_lightning
from castiron.lightning.training_step import loss_of_step
from castiron.policy import PrecisionPolicy, resolve
from castiron.torch.capability import device_capability, resolve_device
from castiron.torch.clipping import clip_by_norm
from castiron.torch.determinism import deterministic_algorithms, isolated_rng, threads
from castiron.torch.inputs import cast_inputs
from castiron.torch.modules import describe
from castiron.torch.precision import apply
from castiron.torch.replay.step import ReplayStep
from castiron.torch.stored_step import StoredStep, is_finite_step
from castiron.torch.switches import matmul_switches
from castiron.torch.updates import guard_updates
from castiron.torch.weights import read_weights
from castiron.training.backend import Remedies, Replayed, Tried
from castiron.training.config import RunConfig
from castiron.training.incident_folder import ASSETS, PARAMETERS, IncidentFolder, digest_of
from castiron.training.recipe import Recipe
from castiron.training.responses import promoted

_SAY_LOSS = "Say how the loss is made: replay(path, module, loss_of=lambda module, batch, i: …)."
LossOf = Callable[[Any, Any, int], Tensor]
"""Module, batch and number of the micro-batch → loss: forward pass and loss, nothing else."""


def replay(
    path: str | Path,
    module: nn.Module,
    *,
    policies: Sequence[PrecisionPolicy | str | Mapping[str, Any]] = (),
    device: str | None = None,
    promote: Sequence[str] = (),
    loss_of: LossOf | None = None,
    optimizers_of: Callable[[Any], Sequence[Optimizer]] | None = None,
) -> Replayed:
    """Run an incident of any LightningModule, or of a bare loop, again, and try remedies.

        print(castiron.lightning.replay("runs/net/first/incidents/step-12", Net(hidden=64), device="cpu"))

    Args:
        path: the incident's folder.
        module: made as for the training. It stays as it is: copies of it are run.
        policies: policies to try, each by itself.
        device: a device to try ("cpu", "cuda").
        promote: layers to try in float32, each by itself.
        loss_of: module, batch and number of the micro-batch to loss; by default its `training_step`.
        optimizers_of: module to its optimizers, for an optimizer's fault; by default what its
            `configure_optimizers` makes.

    Raises:
        CastironError: the folder is none (N512), damaged (N513), of another layout (N514), or does not fit
            the module (N515); a policy or a layer is refused.
    """
    folder = IncidentFolder.open(path)
    if loss_of is None and not getattr(module, "automatic_optimization", False):
        why = (
            "The module steps its optimizers by itself: its training_step cannot be run for the loss alone."
            if isinstance(module, pl.LightningModule)
            else "The module is no LightningModule: how its loss is made is not known."
        )
        raise folder.not_replayable(why, _SAY_LOSS)
    indices = folder.facts.get("batch_indices", [])
    calculate: LossOf = loss_of or _TrainingStep(folder, indices)

    def make(policy: PrecisionPolicy | None) -> _Made:
        own = _copy(module)
        root = getattr(own, "precision_root", own)
        schema = getattr(own, "schema", None)
        return _Made(
            own, root, lambda batch, i: calculate(own, batch, i), schema, optimizers_of or _optimizers_of
        )

    policy = folder.plan().policy if folder.has("plan.json") else None
    wanted = Remedies(
        policies=[PrecisionPolicy.model_validate(p) for p in policies], device=device, promote=promote
    )
    with isolated_rng(), quiet_lightning():
        return _Replay(folder, make, policy).run(wanted)


def replay_recipe(
    folder: IncidentFolder, config: RunConfig, recipe: type[Recipe], remedies: Remedies
) -> Replayed:
    """Run a recipe's incident again, from its folder alone, and try remedies.

    Raises:
        CastironError: the folder is damaged (N513), or the recipe's model is another one by now (N515); a
            policy or a layer is refused.
    """

    def make(policy: PrecisionPolicy | None) -> _Made:
        under = config.model_copy(update={"precision": policy or config.precision})
        own = recipe(under)
        own.load(folder.folder(ASSETS))
        module = RecipeModule(own, under.precision)

        def loss_of(batch: Any, i: int) -> Tensor:
            loss: Tensor = own.loss(module(batch), batch)
            return loss

        return _Made(module, module.precision_root, loss_of, module.schema, _optimizers_of)

    policy = folder.plan().policy if folder.has("plan.json") else config.precision
    trainer = config.trainer
    with (
        isolated_rng(), threads(trainer.threads), deterministic_algorithms(trainer.deterministic),
        quiet_lightning(),
    ):  # fmt: skip
        return _Replay(folder, make, policy).run(remedies)


@dataclass(frozen=True, slots=True)
class _Made:
    """A model made for one run."""

    module: nn.Module
    root: nn.Module
    """That parameters' names and layer rules are relative to."""
    loss_of: Callable[[Any, int], Tensor]
    schema: Schema | None
    optimizers_of: Callable[[Any], Sequence[Optimizer]]


class _Replay:
    """One incident, and the model that is made anew for each run of it."""

    def __init__(
        self,
        folder: IncidentFolder,
        make: Callable[[PrecisionPolicy | None], _Made],
        policy: PrecisionPolicy | None,
    ) -> None:
        self._folder, self._make, self._policy = folder, make, policy
        self._checkpoint = _checkpoint(folder)

    def run(self, remedies: Remedies) -> Replayed:
        folder, policy = self._folder, self._policy
        was = str(folder.facts.get("device", "cpu"))
        home = was if was == "cpu" or torch.cuda.is_available() else "cpu"
        notes: list[str] = []
        with self._step(policy, home, notes) as (step, stored):
            found = stored.located(castiron.torch.replay.attribute(step))
        base = policy or PrecisionPolicy.preset("float32")
        trials: list[tuple[str, PrecisionPolicy | None, str]]
        trials = [(f"policy {p.label}", p, home) for p in remedies.policies]
        if remedies.device is not None:
            trials.append((f"device {remedies.device}", policy, remedies.device))
        trials += [(f"promote {layer}", promoted(base, layer), home) for layer in remedies.promote]
        return Replayed(
            incident=folder.incident,
            replay=found,
            remedies=tuple(self._try(*trial) for trial in trials),
            notes=tuple(notes),
        )

    def _try(self, tried: str, policy: PrecisionPolicy | None, device: str) -> Tried:
        """One remedy.

        Raises:
            CastironError: this model or machine refuses it.
        """
        try:
            return self._tried(tried, policy, device)
        except CastironError as e:
            # Not a mistake in the run's config, where it would be looked for otherwise.
            said = Place(file=f"remedy '{tried}'")
            e.findings = tuple(replace(f, place=said) if f.place.file is None else f for f in e.findings)
            e.args = ("\n".join(str(f) for f in e.findings),)
            raise

    def _tried(self, tried: str, policy: PrecisionPolicy | None, device: str) -> Tried:
        with self._step(policy, device, []) as (step, stored):
            clip = stored.number("clip_norm", math.inf)

            def before_update() -> None:
                if clip < math.inf:
                    clip_by_norm(step.root.parameters(), clip, torch.float32)

            update = self._folder.incident.phase == "optimizer" and bool(step.optimizers)
            if is_finite_step(step, before_update=before_update, update=update):
                return Tried(tried=tried, goes_away=True)
        with self._step(policy, device, []) as (step, stored):
            return Tried(
                tried=tried,
                goes_away=False,
                remains=stored.located(castiron.torch.replay.attribute(step)),
            )

    @contextlib.contextmanager
    def _step(
        self, policy: PrecisionPolicy | None, device: str, notes: list[str]
    ) -> Iterator[tuple[ReplayStep, StoredStep]]:
        """The step on a new model, under this policy."""
        folder = self._folder
        where = resolve_device(device)
        stored = StoredStep(folder, where)
        made = self._make(policy)
        made.module.to(where)
        root = made.root
        with contextlib.ExitStack() as stack:
            applied = None
            if policy is not None:
                plan, _ = resolve(policy, describe(root), device_capability(device))
                applied = apply(root, plan)
                stack.enter_context(matmul_switches(policy.matmul))
            stored.put_parameters(root, self._checkpoint)
            optimizers = self._optimizers(made, stored, policy, notes)
            batches = stored.batches()
            if policy is not None:
                batches = [cast_inputs(b, policy, made.schema) for b in batches]
            scale = self._scale(policy, stored.number("scale", 1.0))
            mean_of = len(batches) if folder.facts.get("kind") == "loop" else 1
            accumulate = int(stored.number("accumulate", mean_of))

            def run(batch: Any, i: int) -> Tensor | None:
                with applied.forward_context(where.type) if applied else contextlib.nullcontext():
                    loss = made.loss_of(batch, i)
                with applied.backward_context(where.type) if applied else contextlib.nullcontext():
                    ((loss if accumulate == 1 else loss / accumulate) * scale).backward()
                return loss.detach()

            step = ReplayStep(
                root=root,
                batches=batches,
                run=run,
                restore=stored.restore(root),
                verdict=stored.verdict,
                optimizers=optimizers,
                scale=scale,
                policy=str(policy) if policy is not None else folder.incident.policy,
            )
            notes += stored.notes
            yield step, stored

    def _optimizers(
        self, made: _Made, stored: StoredStep, policy: PrecisionPolicy | None, notes: list[str]
    ) -> Sequence[Optimizer]:
        """The module's optimizers in their state of before the step; none where that cannot be."""
        if self._folder.incident.phase != "optimizer":
            return ()
        try:
            optimizers = made.optimizers_of(made.module)
        except (RuntimeError, AttributeError) as e:  # it may want a trainer
            notes.append(f"The optimizers could not be made ({e}): say how, as optimizers_of=….")
            return ()
        for optimizer in optimizers:
            if policy is not None:
                guard_updates(optimizer, policy)
        if not stored.put_optimizers(made.root, optimizers):
            notes.append("The optimizer's state is not there, or does not fit: the optimizer starts anew.")
        return optimizers

    def _scale(self, policy: PrecisionPolicy | None, was: float) -> float:
        """The scale of the loss under a policy.

        Args:
            was: that of the step.
        """
        if policy is None or self._policy is None:
            return was if policy is None else 1.0
        scaling = policy.scaling
        if scaling.kind == "none":
            return 1.0
        if scaling.kind == "static":
            return scaling.scale
        return was if self._policy.scaling.kind == "dynamic" else scaling.initial


# --- pieces --------------------------------------------------------------------------------------------


class _TrainingStep:
    """A module's own `training_step`, for its loss."""

    def __init__(self, folder: IncidentFolder, indices: Sequence[int]) -> None:
        self._folder, self._indices = folder, indices

    def __call__(self, module: Any, batch: Any, i: int) -> Tensor:
        index = self._indices[i] if i < len(self._indices) else i
        with warnings.catch_warnings():
            # There is no trainer to log to.
            warnings.filterwarnings("ignore", message=r".*self\.log.*")
            try:
                loss = loss_of_step(module, batch, index)
            except RuntimeError as e:
                if "not attached to a `Trainer`" not in str(e):
                    raise
                why = "The module's training_step asks for its trainer, and there is none here."
                raise self._folder.not_replayable(why, _SAY_LOSS) from e
        if loss is None:
            raise TypeError("Expected a loss from training_step. Received None.")
        return loss


def _copy(module: nn.Module) -> nn.Module:
    """A copy without the trainer that the module may be attached to."""
    if not isinstance(module, pl.LightningModule):
        return copy.deepcopy(module)
    trainer, module._trainer = module._trainer, None
    try:
        return copy.deepcopy(module)
    finally:
        module._trainer = trainer


def _optimizers_of(module: Any) -> list[Optimizer]:
    """What `configure_optimizers` makes, without the schedules."""
    made = module.configure_optimizers()
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], list | tuple):
        made = made[0]
    several = list(made) if isinstance(made, list | tuple) else [made]
    return [m["optimizer"] if isinstance(m, Mapping) else m for m in several if m is not None]


def _checkpoint(folder: IncidentFolder) -> dict[str, Tensor] | None:
    """The parameters that a folder only refers to; None where it holds them."""
    told = folder.facts.get("checkpoint")
    if folder.has(PARAMETERS) or not isinstance(told, Mapping):
        return None
    path = Path(str(told.get("path")))
    if not path.is_file():
        raise folder.not_replayable(
            "The parameters are in a checkpoint that is not here.",
            "Copy it there from where the run was.",
            expected=str(path),
        )
    if digest_of(path) != told.get("blake3"):
        raise folder.not_replayable(
            "The checkpoint with the parameters is not the one of the incident any more.",
            received=str(path),
        )
    state, _ = read_weights(path)
    prefix = "model." if folder.facts.get("kind") == "recipe" else ""
    return {str(name).removeprefix(prefix): value for name, value in state.items()}
