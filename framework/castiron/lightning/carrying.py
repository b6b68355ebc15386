"""Weights of a run as plain arrays, out of and into checkpoints: what `castiron convert` asks of a wing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from castiron.lightning.checkpoints import load_weights, write_checkpoint
from castiron.lightning.manifest import expected_of, stored_records
from castiron.lightning.module import RecipeModule
from castiron.torch.manifest import buffer_names, cast_weights, weights_digest
from castiron.training.backend import Job
from castiron.training.manifest import asset_digests, of_training


def weights(job: Job) -> dict[str, np.ndarray]:
    """What the model of `job.checkpoint` stores, by name; 16-bit formats as float32."""
    assert job.checkpoint is not None
    module = _module_of(job)
    load_weights(module, job.checkpoint, device=job.config.trainer.device)
    return {
        name: (value.float() if value.dtype.itemsize < 4 else value).detach().cpu().numpy()
        for name, value in module.model.state_dict().items()
    }


def adopt(job: Job, weights: Mapping[str, np.ndarray]) -> None:
    """Write a checkpoint of these weights, in the formats of the plan, as the run's best."""
    module = _module_of(job)
    path = job.run.checkpoints / "best.ckpt"
    policy = job.config.precision
    expected = expected_of(module, policy, device=job.config.trainer.device, recipe=module.recipe.name)
    state = {f"model.{name}": torch.from_numpy(np.array(value)) for name, value in weights.items()}
    for kind, wanted in expected.tensors.items():
        state, _ = cast_weights(state, wanted, path, kind)
    module.load_state_dict(state)
    checkpoint = {"state_dict": state, "global_step": 0, "epoch": 0}
    manifest = of_training(
        policy,
        None,
        stored_records(checkpoint, buffer_names(module)),
        model=type(module.precision_root).__name__,
        step=0,
        epoch=0,
        weights=weights_digest(state),
        recipe=module.recipe.name,
        assets=asset_digests(job.run.assets),
    )
    write_checkpoint(checkpoint, manifest, path)


def _module_of(job: Job) -> RecipeModule:
    """The recipe's model as the run learned its data."""
    recipe = job.recipe(job.config)
    recipe.load(job.run.assets)
    return RecipeModule(recipe, job.config.precision)
