"""An incident run again: the model made anew, put into the state of before the step, and the step
taken. Every run has a model of its own, so that a remedy starts from where the step started."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tensorflow as tf

from castiron.diagnostics import CastironError, Place
from castiron.keras.arguments import cast_data, declared
from castiron.keras.enforcement import enforce
from castiron.keras.incidents import StoredStep
from castiron.keras.inputs import cast_inputs
from castiron.keras.module import RecipeModel
from castiron.keras.replay import ReplayStep, attribute
from castiron.keras.replay.step import OwnStep
from castiron.keras.session import session
from castiron.keras.step import Forward, StepCore
from castiron.policy import PrecisionPolicy
from castiron.training.backend import Remedies, Replayed, Tried
from castiron.training.config import RunConfig
from castiron.training.held import located
from castiron.training.incident import Attribution
from castiron.training.incident_folder import ASSETS, IncidentFolder
from castiron.training.recipe import Recipe
from castiron.training.responses import promoted
from castiron.training.run_directory import PLAN


def replay_recipe(
    folder: IncidentFolder, config: RunConfig, recipe: type[Recipe], remedies: Remedies
) -> Replayed:
    """Run a recipe's incident again, from its folder alone, and try remedies.

    Raises:
        CastironError: the folder is damaged (N513), or the recipe's model is another one by now (N515); a
            policy or a layer is refused.
    """
    stored = StoredStep(folder)
    policy = folder.plan().policy if folder.has(PLAN) else config.precision

    def run(under: PrecisionPolicy, device: str | None) -> Attribution:
        if device is None:
            return _run(stored, config, recipe, under)
        trainer = config.trainer.model_copy(update={"device": device})
        return _run(stored, config.model_copy(update={"trainer": trainer}), recipe, under)

    return _tried(folder, policy, remedies, run)


def replay_incident(
    path: str | Path,
    make: Callable[[], Any],
    *,
    loss_of: Callable[[Any, Any], Any] | None = None,
    policies: Sequence[PrecisionPolicy | str | Mapping[str, Any]] = (),
    promote: Sequence[str] = (),
) -> Replayed:
    """Run an incident of `enforce`, or of a loop of one's own, again, and try remedies.

        print(castiron.keras.replay_incident("incidents/step-10", make_model, promote=["head"]))

    Args:
        path: the incident's folder.
        make: makes the model as for the training: built, and compiled. It is called for every run.
        loss_of: model and batch to loss, of a loop of one's own; by default what `fit` takes for it.
        policies: policies to try, each by itself.
        promote: layers to try in float32, each by itself.

    Raises:
        CastironError: the folder is none (N512), damaged (N513), of another layout (N514), or does not fit
            the model (N515); a policy or a layer is refused.
    """
    folder = IncidentFolder.open(path)
    stored = StoredStep(folder)
    policy = folder.plan().policy

    def run(under: PrecisionPolicy, device: str | None) -> Attribution:
        model = enforce(make(), under)
        batches = [cast_data(under, b) for b in stored.batches()]
        if loss_of is None:
            model._maybe_symbolic_build(data_batch=batches[0])
            model.make_train_function()
            forward = model.castiron.forward
        else:
            calculate = loss_of

            def forward(batch: Any) -> tuple[Any, Any]:
                return calculate(model, batch), None

        with declared(under):
            own = model.castiron.own_step if loss_of is None else None
            return _attributed(stored, model.castiron.core, forward, batches, under, own)

    wanted = Remedies(policies=[PrecisionPolicy.model_validate(p) for p in policies], promote=promote)
    return _tried(folder, policy, wanted, run)


def _tried(
    folder: IncidentFolder,
    policy: PrecisionPolicy,
    remedies: Remedies,
    run: Callable[[PrecisionPolicy, str | None], Attribution],
) -> Replayed:
    """The step as it was, and under each remedy."""
    found = run(policy, None)
    tried: list[tuple[str, PrecisionPolicy, str | None]] = [
        *((f"policy {p.label}", p, None) for p in remedies.policies),
        *((f"promote {layer}", promoted(policy, layer), None) for layer in remedies.promote),
    ]
    if remedies.device is not None:
        tried.append((f"device {remedies.device}", policy, remedies.device))
    results = []
    for name, under, device in tried:
        with _named(name):
            remains = run(under, device)
        gone = not remains.reproduced
        results.append(Tried(tried=name, goes_away=gone, remains=None if gone else remains))
    notes = []
    was = folder.incident.versions.get("tensorflow", tf.__version__).partition(" ")[0]
    if was != tf.__version__:
        notes.append(f"The step ran with TensorFlow {was}, its replay runs with {tf.__version__}.")
    return Replayed(incident=folder.incident, replay=found, remedies=tuple(results), notes=tuple(notes))


@contextlib.contextmanager
def _named(tried: str) -> Iterator[None]:
    """Within it, what is refused is told of the remedy, and not looked for in the run's config."""
    try:
        yield
    except CastironError as e:
        said = Place(file=f"remedy '{tried}'")
        e.findings = tuple(replace(f, place=said) if f.place.file is None else f for f in e.findings)
        e.args = ("\n".join(str(f) for f in e.findings),)
        raise


def _run(stored: StoredStep, config: RunConfig, recipe: type[Recipe], policy: PrecisionPolicy) -> Attribution:
    under = config.model_copy(update={"precision": policy})
    with session(under):
        own = recipe(under)
        own.load(stored.folder.folder(ASSETS))
        module = RecipeModel(own)
        module.prepare_training(1)
        batches: list[Any] = [cast_inputs(b, policy, module.schema) for b in stored.batches()]
        return _attributed(stored, module.core, module.forward, batches, policy)


def _attributed(
    stored: StoredStep,
    core: StepCore,
    forward: Forward,
    batches: list[Any],
    policy: PrecisionPolicy,
    own: OwnStep | None = None,
) -> Attribution:
    stored.put(core)
    was = stored.folder.plan().policy.scaling.kind if stored.folder.has(PLAN) else policy.scaling.kind
    if policy.scaling.kind == was == "dynamic":
        core.scaler.variables()[0].assign(stored.scale)
    found = attribute(ReplayStep(core, forward, batches, stored.verdict, core.scaler.get_scale(), own))
    return found.model_copy(update={"rows": tuple(located(r, stored.origin) for r in found.rows)})
