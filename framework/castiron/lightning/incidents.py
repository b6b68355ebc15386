"""Incidents of a Lightning training: how a trainer's guard stores one."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from castiron.lightning.module import RecipeModule
from castiron.policy import Plan
from castiron.torch import incidents
from castiron.torch.incidents import PARAMETERS_LIMIT
from castiron.torch.replay.step import ReplayStep
from castiron.training.held import Origin, incident_of
from castiron.training.incident import Incident
from castiron.training.incident_folder import BUDGET
from castiron.training.registry import recipe_file
from castiron.training.writing import written
from castiron.training.yaml_writer import as_yaml

__all__ = ["incident_of", "store"]


def store(
    incident: Incident,
    step: ReplayStep,
    parent: Path,
    *,
    module: pl.LightningModule,
    plan: Plan | None = None,
    accumulate: int = 1,
    batch_indices: Sequence[int] = (),
    clip_norm: float | None = None,
    origin: Origin | None = None,
    checkpoint: Path | None = None,
    parameters_limit: int = PARAMETERS_LIMIT,
    budget: int = BUDGET,
) -> Path:
    """Write the folder of an incident of a live training, from which `castiron replay` runs the step again.

    Call it when the step is held. To replay it, a recipe's incident needs nothing but the recipe's code; that
    of any other module needs the module.

    Args:
        incident: the record; `incident_of` makes it.
        step: the held step.
        parent: the run's folder `incidents`.
        module: that is trained.
        plan: the plan that was applied to it; None: no policy was.
        accumulate: micro-batches per optimizer step, by which Lightning divides the loss.
        batch_indices: `batch_idx` of each micro-batch.
        clip_norm: largest global norm of the gradients.
        origin: names the file and line of rows.
        checkpoint: a checkpoint of these very parameters, for models too large to store.
        parameters_limit: bytes of parameters that are stored.
        budget: bytes of tensors and assets of all incidents below `parent`.

    Raises:
        RunError: the disk is full, or the folder cannot be written (X819).
    """
    recipe = module.recipe if isinstance(module, RecipeModule) else None
    facts = {
        "module": f"{type(module).__module__}.{type(module).__qualname__}",
        "accumulate": accumulate,
        "batch_indices": list(batch_indices),
        "clip_norm": clip_norm,
    }
    with _assets(recipe) as assets:
        return incidents.store(
            incident,
            step,
            parent,
            kind="recipe" if recipe is not None else "module",
            plan=plan,
            config=as_yaml(recipe.run.resolved(), "The run's config.") if recipe is not None else None,
            assets=assets,
            code=recipe_file(type(recipe)) if recipe is not None else None,
            facts=facts,
            origin=origin,
            checkpoint=checkpoint,
            parameters_limit=parameters_limit,
            budget=budget,
        )


@contextlib.contextmanager
def _assets(recipe: Any) -> Iterator[Path | None]:
    """A folder with what the recipe learned; None where it learned nothing."""
    if recipe is None:
        yield None
        return
    with written(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as folder:
        recipe.save(Path(folder))
        yield Path(folder) if any(Path(folder).iterdir()) else None
