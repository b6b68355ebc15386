"""The precision manifest of a Lightning training, what it expects of one, and checkpoints read against it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from castiron.diagnostics import Finding
from castiron.lightning.averaging import AVERAGE
from castiron.lightning.precision import PrecisionPlugin
from castiron.policy import Plan, PrecisionPolicy, resolve
from castiron.torch.capability import device_capability
from castiron.torch.manifest import (
    Records,
    buffer_names,
    cast_weights,
    expected_weights,
    optimizer_identity,
    optimizer_records,
    record,
    weight_records,
    weights_digest,
)
from castiron.torch.modules import describe
from castiron.torch.weights import first_line, read_tensors
from castiron.training.checkpoint_file import check_intact, damaged
from castiron.training.manifest import Manifest, numbers_of, of_training, plan_of, read_manifest
from castiron.training.manifest_check import Expected, OnMismatch, Row, cast_told, check, same_content


def manifest_of(trainer: pl.Trainer, checkpoint: Mapping[str, Any], **told: Any) -> Manifest:
    """The manifest of what `dump_checkpoint` gave.

    Args:
        **told: other fields of the manifest (`recipe`, `assets`).
    """
    plugin, module = trainer.precision_plugin, trainer.lightning_module
    own = plugin if isinstance(plugin, PrecisionPlugin) else None
    policy = own.policy if own else PrecisionPolicy.preset("float32")
    states = checkpoint.get("optimizer_states", [])
    kept = checkpoint.get(type(plugin).__qualname__)
    return of_training(
        policy,
        own.plan if own else None,
        stored_records(checkpoint, buffer_names(module)),
        declared=own.declared if own else None,
        model=type(getattr(module, "precision_root", module)).__name__,
        step=checkpoint.get("global_step"),
        epoch=checkpoint.get("epoch"),
        optimizers=tuple(
            optimizer_identity(type(o).__name__, s["param_groups"])
            for o, s in zip(trainer.optimizers, states, strict=False)
        ),
        scaler=kept["scaler"] if isinstance(kept, Mapping) and "scaler" in kept else None,
        weights=weights_digest(checkpoint["state_dict"]),
        **told,
    )


def stored_records(checkpoint: Mapping[str, Any], buffers: set[str]) -> Records:
    """Every tensor that a checkpoint holds of a training."""
    average = checkpoint.get(AVERAGE) or {}
    return {
        **weight_records(checkpoint["state_dict"], buffers),
        **optimizer_records(checkpoint.get("optimizer_states", [])),
        "average": {
            name: record(value)
            for part in ("averages", "copies")
            for name, value in average.get(part, {}).items()
        },
    }


def expected_of(
    module: nn.Module, policy: PrecisionPolicy, *, device: str = "auto", plan: Plan | None = None, **told: Any
) -> Expected:
    """What a module under a policy expects of a checkpoint.

    Args:
        plan: where it is known; resolved otherwise.
        **told: other fields of `Expected` (`recipe`, `assets`, `optimizers`).

    Raises:
        PlanError, HardwareError: the policy does not fit.
    """
    root: nn.Module = getattr(module, "precision_root", module)
    if plan is None:
        plan, _ = resolve(policy, describe(root), device_capability(device))
    path = next((name for name, inner in module.named_modules() if inner is root), "")
    return Expected(
        declared=numbers_of(policy),
        policy=str(policy),
        tensors=expected_weights(module, plan, path),
        state=policy.state,
        scaling=policy.scaling.kind,
        plan=plan_of(plan),
        **told,
    )


def verified(
    path: Path, expected: Expected | None, on_mismatch: OnMismatch = "refuse", *, mmap: bool = False
) -> tuple[dict[str, Any], Manifest | None, list[Finding]]:
    """Read a checkpoint that is whole, is what its manifest says, and fits what is expected.

    → what it holds (cast where that was asked for), its manifest (None where it has none), and what there is
    to tell. Nothing is loaded into anything.

    Raises:
        ManifestError: it is not, or does not (C6xx).
    """
    check_intact(path)
    manifest = read_manifest(path)
    told: list[Finding] = []
    if manifest is not None and expected is not None:
        told = check(manifest, expected, path, on_mismatch)
    checkpoint = read_tensors(path, mmap=mmap)
    if manifest is None:
        return checkpoint, None, told
    try:
        stored = stored_records(checkpoint, set(manifest.tensors.get("buffers", ())))
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        raise damaged(
            path, f"it is no checkpoint of a training ({type(e).__name__}: {first_line(e)})"
        ) from None
    same_content(manifest, {kind: named for kind, named in stored.items() if named}, path)
    if expected is not None and any(f.severity == "error" for f in told):
        checkpoint, rows = _cast(checkpoint, manifest, expected, path)
        told = [f for f in told if f.severity != "error"] + ([cast_told(rows, path)] if rows else [])
    return checkpoint, manifest, told


def _cast(
    checkpoint: dict[str, Any], manifest: Manifest, expected: Expected, path: Path
) -> tuple[dict[str, Any], list[Row]]:
    """The checkpoint in the expected formats; a scaler of another kind is left out, and starts anew."""
    cast = dict(checkpoint)
    rows: list[Row] = []
    for kind, named in expected.tensors.items():
        cast["state_dict"], more = cast_weights(cast["state_dict"], named, path, kind)
        rows += more
    if expected.state is not None:
        states = []
        for number, optimizer in enumerate(checkpoint.get("optimizer_states", [])):
            kept = {}
            for index, state in optimizer["state"].items():
                wanted = {
                    name: record(value).model_copy(update={"dtype": expected.state})
                    for name, value in state.items()
                    if name != "step"
                    and isinstance(value, torch.Tensor)
                    and value.dim()
                    and value.is_floating_point()
                }
                kept[index], more = cast_weights(state, wanted, path, "optimizer")
                rows += [(kind, f"{number}.{index}.{name}", a, b) for kind, name, a, b in more]
            states.append({**optimizer, "state": kept})
        cast["optimizer_states"] = states
    if expected.scaling is not None and (manifest.scaler or {}).get("kind") != expected.scaling:
        for name, value in checkpoint.items():
            if isinstance(value, Mapping) and "scaler" in value and "policy" in value:
                cast.pop(name)
    return cast, rows
