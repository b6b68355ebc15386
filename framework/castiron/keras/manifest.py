"""The precision manifest of a Keras training: what a checkpoint holds, and what a model expects of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from blake3 import blake3

from castiron.keras.dtypes import dtype_name
from castiron.keras.module import RecipeModel
from castiron.keras.modules import own_variables, variables, walk
from castiron.training.manifest import (
    Manifest,
    OptimizerRecord,
    TensorRecord,
    numbers_of,
    of_training,
    plan_of,
)
from castiron.training.manifest_check import Expected, Row, cast_of

Named = dict[str, dict[str, Any]]
"""Kind (`training.manifest.KINDS`) → name → tf.Variable."""


def named(module: RecipeModel, *, training: bool) -> Named:
    """Every variable that a checkpoint holds; of the model alone, where it is not for training."""
    model = module.model
    buffers = {id(v) for _, layer in walk(model) for v in own_variables(layer)[1]}
    found: Named = {"parameters": {}, "buffers": {}}
    for name, variable in variables(model).items():
        found["buffers" if id(variable) in buffers else "parameters"][name] = variable._value
    if not training:
        return found
    known = {id(v) for own in found.values() for v in own.values()}
    others = [v for v in module.core.snapshot.variables if id(v) not in known]
    masters = module.updates.masters()
    states = [v for v in module.updates.variables() if not any(v is m for m in masters)]
    found |= {"state": _numbered(others), "optimizer": _numbered(states), "masters": _numbered(masters)}
    if module.average is not None:
        found["average"] = {**module.average.averages, "(updates)": module.average.updates}
    return found


def _numbered(values: list[Any]) -> dict[str, Any]:
    return {str(i): v for i, v in enumerate(values)}


def record(variable: Any) -> TensorRecord:
    """Format and shape of a variable."""
    return TensorRecord(dtype=dtype_name(variable.dtype), shape=tuple(variable.shape.as_list()))


def manifest_of(module: RecipeModel, found: Named, arrays: Mapping[str, np.ndarray], **told: Any) -> Manifest:
    """The manifest of a checkpoint.

    Args:
        found: what it holds.
        arrays: `<kind>/<name>` → its bytes as they are stored.
        **told: other fields of the manifest (`step`, `assets`).
    """
    hasher = blake3()
    for kind in ("parameters", "buffers"):
        for name, variable in sorted(found[kind].items()):
            hasher.update(f"{name} {record(variable)}\n".encode())
            hasher.update(arrays[f"{kind}/{name}"].tobytes())
    return of_training(
        module.policy,
        module.plan,
        {kind: {n: record(v) for n, v in own.items()} for kind, own in found.items()},
        declared=module.recipe.run.precision,
        backend="tensorflow",
        recipe=module.recipe.name,
        model=type(module.model).__name__,
        optimizers=(_optimizer(module),),
        scaler=module.scaler.state_dict(),
        weights=hasher.hexdigest(),
        **told,
    )


def expected_of(
    module: RecipeModel, manifest: Manifest, *, training: bool, assets: Mapping[str, str] | None = None
) -> Expected:
    """What a model expects of the checkpoint of this manifest."""
    declared = numbers_of(module.recipe.run.precision)
    found = named(module, training=training)
    tensors = {kind: {n: record(v) for n, v in own.items()} for kind, own in found.items()}
    if declared != manifest.declared:
        # Another policy may ask for other master copies: where formats may be cast, they follow the weights.
        tensors.pop("masters", None)
    return Expected(
        declared=declared,
        policy=str(module.recipe.run.precision),
        backend="tensorflow",
        recipe=module.recipe.name,
        tensors=tensors,
        optimizers=(_optimizer(module),) if training else None,
        scaling=module.policy.scaling.kind if training else None,
        assets=assets,
        plan=plan_of(module.plan),
    )


def _optimizer(module: RecipeModel) -> OptimizerRecord:
    updates = module.updates
    return OptimizerRecord(type=type(updates.optimizer).__name__, groups=(len(updates.parameters),))


def cast(value: np.ndarray, have: str, want: Any, row: tuple[str, str]) -> tuple[Any, Row]:
    """A stored tensor in the format of a variable. → it, and a row that tells what that did to its values.

    Args:
        have: the format that it is stored in.
        want: tf.DType.
        row: kind and name, for the row.
    """
    narrow = tf.cast(tf.constant(value), want)
    name = dtype_name(want)
    return narrow, (*row, have, f"{name}  {_told(value, np.asarray(narrow.numpy()), cast_of(have, name))}")


def _told(value: np.ndarray, cast: np.ndarray, kind: str) -> str:
    if kind == "(exact)":
        return "exact"
    a, b = value.astype(np.float64), cast.astype(np.float64)
    if infinite := int((np.isfinite(a) & ~np.isfinite(b)).sum()):
        return f"{infinite:,} of {a.size:,} values infinite"
    changed = (a != b) & ~(np.isnan(a) & np.isnan(b))
    if not changed.any():
        return "exact for these values"
    relative = (np.abs(a - b)[changed] / np.abs(a)[changed]).max()
    flushed = int((changed & (b == 0)).sum())
    gone = f", {flushed:,} to zero" if flushed else ""
    return f"rounded: {int(changed.sum()):,} of {a.size:,} values{gone}, at most {relative:.2g} of the value"
