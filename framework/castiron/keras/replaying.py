"""An incident of a recipe run again: the model made anew, put into the state of before the step, and the step
taken. Every run has a model of its own, so that a remedy starts from where the step started."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import tensorflow as tf

from castiron.diagnostics import CastironError, Place
from castiron.keras.incidents import StoredStep
from castiron.keras.inputs import cast_inputs
from castiron.keras.module import RecipeModel
from castiron.keras.replay import ReplayStep, attribute
from castiron.keras.session import session
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
    found = _run(stored, config, recipe, policy)
    tried = [
        *((f"policy {p.label}", p, config) for p in remedies.policies),
        *((f"promote {layer}", promoted(policy, layer), config) for layer in remedies.promote),
    ]
    if remedies.device is not None:
        trainer = config.trainer.model_copy(update={"device": remedies.device})
        tried.append((f"device {remedies.device}", policy, config.model_copy(update={"trainer": trainer})))
    results = []
    for name, under, where in tried:
        with _named(name):
            remains = _run(stored, where, recipe, under)
        gone = not remains.reproduced
        results.append(Tried(tried=name, goes_away=gone, remains=None if gone else remains))
    notes = []
    was = folder.incident.versions.get("tensorflow", tf.__version__)
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
        stored.put(module.core)
        batches: list[Any] = [cast_inputs(b, policy, module.schema) for b in stored.batches()]
        was = stored.folder.plan().policy.scaling.kind if stored.folder.has(PLAN) else policy.scaling.kind
        if policy.scaling.kind == was == "dynamic":
            module.scaler.variables()[0].assign(stored.scale)
        found = attribute(
            ReplayStep(module.core, module.forward, batches, stored.verdict, module.scaler.get_scale())
        )
    return found.model_copy(update={"rows": tuple(located(r, stored.origin) for r in found.rows)})
