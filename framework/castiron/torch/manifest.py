"""What a checkpoint's tensors are, what a model expects of one, and casts between the two."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor, nn

from castiron.policy import Plan
from castiron.torch.dtypes import dtype_name, torch_dtype
from castiron.training.manifest import OptimizerRecord, TensorRecord
from castiron.training.manifest_check import Row, cast_of, overflow

Records = dict[str, dict[str, TensorRecord]]
"""Kind → name → format and shape."""
_MASTERS = "castiron_masters"


def record(tensor: Tensor) -> TensorRecord:
    """Format and shape of a tensor."""
    return TensorRecord(dtype=dtype_name(tensor.dtype), shape=tuple(tensor.shape))


def weight_records(state: Mapping[str, Any], buffers: Iterable[str]) -> Records:
    """Parameters and buffers of a state dict; what is no tensor is left out."""
    named = set(buffers)
    found: Records = {"parameters": {}, "buffers": {}}
    for name, value in state.items():
        if isinstance(value, Tensor):
            found["buffers" if name in named else "parameters"][name] = record(value)
    return found


def optimizer_records(states: Iterable[Mapping[str, Any]]) -> Records:
    """Tensors that optimizers keep, by `<optimizer>.<parameter>.<name>`, and their master copies."""
    found: Records = {"optimizer": {}, "masters": {}}
    for number, optimizer in enumerate(states):
        for index, state in optimizer["state"].items():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    found["optimizer"][f"{number}.{index}.{name}"] = record(value)
        for index, value in optimizer.get(_MASTERS, {}).get("values", {}).items():
            found["masters"][f"{number}.{index}"] = record(value)
    return found


def optimizer_identity(name: str, groups: Iterable[Mapping[str, Any]]) -> OptimizerRecord:
    """An optimizer by its class and how many parameters each group has."""
    return OptimizerRecord(type=name, groups=tuple(len(g["params"]) for g in groups))


def expected_weights(module: nn.Module, plan: Plan, root: str = "") -> Records:
    """What a module's tensors are once the plan is applied.

    Args:
        module: what is saved and loaded.
        plan: of the module, or of one within it.
        root: path of that module.
    """
    prefix = f"{root}." if root else ""
    planned = {prefix + n: d for n, d in {**plan.parameters(), **plan.buffers()}.items()}
    found = weight_records(module.state_dict(), buffer_names(module))
    for named in found.values():
        for name, own in named.items():
            if name in planned:
                named[name] = own.model_copy(update={"dtype": dtype_name(torch_dtype(planned[name]))})
    return found


def buffer_names(module: nn.Module) -> set[str]:
    """Names of a module's buffers, tied ones under each name."""
    return {name for name, _ in module.named_buffers(remove_duplicate=False)}


def weights_digest(state: Mapping[str, Any]) -> str:
    """BLAKE3 of names, formats, shapes and bytes of a state dict's tensors, in the order of their names."""
    hasher = blake3()
    for name, value in sorted(state.items()):
        if isinstance(value, Tensor):
            hasher.update(f"{name} {record(value)}\n".encode())
            plain = value.detach().cpu().contiguous().reshape(-1)
            if plain.numel():
                hasher.update(plain.view(torch.uint8).numpy().data)
    return hasher.hexdigest()


# --- casts ---------------------------------------------------------------------------------------------


def cast_weights(
    state: Mapping[str, Any], wanted: Mapping[str, TensorRecord], path: Path, kind: str = "parameters"
) -> tuple[dict[str, Any], list[Row]]:
    """A state dict in the wanted formats. → it, and a row of a table for each tensor that was cast.

    Raises:
        ManifestError: a finite value would become infinite (C614). Nothing was changed.
    """
    cast = dict(state)
    rows: list[Row] = []
    bad: list[Row] = []
    for name, want in wanted.items():
        value = cast.get(name)
        if not isinstance(value, Tensor) or dtype_name(value.dtype) == want.dtype:
            continue
        cast[name] = narrow = value.to(getattr(torch, want.dtype))
        lost = told_of(value, narrow)
        row = (kind, name, dtype_name(value.dtype), f"{want.dtype}  {lost}")
        (bad if "infinite" in lost else rows).append(row)
    if bad:
        raise overflow(bad, path)
    return cast, rows


def told_of(value: Tensor, cast: Tensor) -> str:
    """What a cast has done to a tensor's values: `exact`, or how many changed and by how much."""
    if cast_of(dtype_name(value.dtype), dtype_name(cast.dtype)) == "(exact)":
        return "exact"
    if value.is_floating_point() and cast.is_floating_point():
        infinite = int((value.isfinite() & ~cast.isfinite()).sum())
        if infinite:
            return f"{infinite:,} of {value.numel():,} values infinite"
        a, b = value.double(), cast.double()
    else:
        a, b = value.to(torch.float64), cast.to(torch.float64)
    changed = (a != b) & ~(a.isnan() & b.isnan())
    if not bool(changed.any()):
        return "exact for these values"
    relative = ((a - b).abs() / a.abs())[changed]
    flushed = int((changed & (b == 0)).sum())
    gone = f", {flushed:,} to zero" if flushed else ""
    return (
        f"rounded: {int(changed.sum()):,} of {a.numel():,} values{gone}, "
        f"at most {float(relative.max()):.2g} of the value"
    )
