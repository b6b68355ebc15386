"""Weights alone, in and out: files of any origin are read as data; exports carry their manifest."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from castiron.diagnostics import Finding, ManifestError, Place, finding
from castiron.policy import PrecisionPolicy, resolve
from castiron.torch.capability import device_capability
from castiron.torch.manifest import (
    buffer_names,
    cast_weights,
    expected_weights,
    weight_records,
    weights_digest,
)
from castiron.torch.modules import describe
from castiron.training.checkpoint_file import check_expansion, check_intact, damaged, new_file
from castiron.training.manifest import KEY, Manifest, read_manifest
from castiron.training.manifest_check import Expected, OnMismatch, Row, cast_told, check

_PREFIXES = ("model.", "module.", "_orig_mod.", "net.")


def load_weights(
    model: nn.Module,
    path: str | Path,
    policy: PrecisionPolicy | str | Mapping[str, Any] | None = None,
    *,
    on_mismatch: OnMismatch = "refuse",
    device: str = "cpu",
) -> list[Finding]:
    """Load weights from a file of any origin into a model. → what there is to tell.

    The file may be safetensors, a state dict of torch, a checkpoint of Lightning's, or one of castiron's. No
    code in it is run. Names, shapes and formats are verified first.

    Args:
        policy: under which the model trains, where it is not in its formats yet.
        on_mismatch: "cast" loads tensors of other formats too, and tells what that did to them.
        device: for which the policy is resolved.

    Raises:
        ManifestError: the file is damaged, does not fit, or asks for code to be run (C6xx). The model is
            as it was then.
    """
    path = Path(path)
    state, manifest = read_weights(path)
    if policy is None:
        wanted = weight_records(model.state_dict(), buffer_names(model))
    else:
        declared = PrecisionPolicy.model_validate(policy)
        plan, _ = resolve(declared, describe(model), device_capability(device))
        wanted = expected_weights(model, plan)
    names = {name for named in wanted.values() for name in named}
    state = without_prefix(state, names)
    if manifest is None:
        manifest = Manifest(castiron="", policy="", declared={})
    manifest = manifest.model_copy(update={"tensors": weight_records(state, wanted.get("buffers", ()))})
    told = check(manifest, Expected(tensors=wanted, backend=manifest.backend), path, on_mismatch)
    rows: list[Row] = []
    for kind, named in wanted.items():
        state, more = cast_weights(state, named, path, kind)
        rows += more
    try:
        model.load_state_dict(state, strict=False)  # names are verified; a module's extra state is its own
    except RuntimeError as e:
        raise damaged(path, " ".join(str(e).split())) from None
    return [f for f in told if f.severity != "error"] + ([cast_told(rows, path)] if rows else [])


def read_weights(path: Path) -> tuple[dict[str, Tensor], Manifest | None]:
    """The tensors of a file by name, and its manifest where it has one. Runs no code from it.

    Raises:
        ManifestError: it is damaged (C601), asks for code (C617), or holds no weights (C616).
    """
    check_intact(path)
    manifest = read_manifest(path)
    if path.suffix == ".safetensors":
        try:
            state = load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as e:
            raise damaged(path, str(e).splitlines()[0] if str(e) else type(e).__name__) from None
        if manifest is not None and manifest.weights and weights_digest(state) != manifest.weights:
            message = "The weights are not those that were exported."
            raise ManifestError(finding("C620", message, place=Place(file=str(path))))
        return state, manifest
    found = read_tensors(path)
    inner = found.get("state_dict", found.get("model_state_dict", found))
    state = (
        {str(k): v for k, v in inner.items() if isinstance(v, Tensor)} if isinstance(inner, Mapping) else {}
    )
    if not state:
        raise ManifestError(
            finding(
                "C616",
                "The file holds no weights.",
                place=Place(file=str(path)),
                expected="tensors by name, or a checkpoint with a 'state_dict'",
                received=", ".join(str(k)[:40] for k in list(found)[:6]) or "nothing",
            )
        )
    return state, manifest


def read_tensors(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """What a file of torch holds, on the CPU. Runs no code from it.

    Raises:
        ManifestError: it asks for code to be run (C617), or is no checkpoint or damaged (C601).
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                check_expansion(path, archive.infolist())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's on what it is about to refuse
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except ManifestError:
        raise
    except Exception as e:  # whatever torch's reader meets in bytes that are no checkpoint
        raise code_inside(path, e) from None
    if not isinstance(found, dict):
        raise damaged(path, f"it holds a {type(found).__name__}, and no checkpoint")
    return found


def code_inside(path: Path, error: Exception) -> ManifestError:
    """The error that says which functions a pickle names (C617), as far as they can be found without it."""
    from castiron.training.inspection.pickles import named_by

    names = named_by(path)
    if not names:
        return damaged(path, first_line(error))
    return ManifestError(
        finding(
            "C617",
            "The file asks its reader to run code, and was not loaded.",
            place=Place(file=str(path)),
            expected="tensors, numbers, text",
            received=", ".join(names[:5]) + (" …" if len(names) > 5 else ""),
        )
    )


def first_line(error: Exception) -> str:
    """What an error says, in a line without its stop."""
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__).rstrip(".")


def without_prefix(state: Mapping[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    """A state dict under the model's own names, where wrappers have put one word before each."""
    for prefix in _PREFIXES:
        if set(state) & names:
            break
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return dict(state)


def export_weights(state: Mapping[str, Any], manifest: Manifest, path: Path) -> None:
    """Write weights as safetensors, the manifest in the header, whole or not at all.

    Raises:
        RunError: the disk is full, or the folder cannot be written (X819).
    """
    tensors = {n: v.detach().cpu().contiguous().clone() for n, v in state.items() if isinstance(v, Tensor)}
    buffers = manifest.tensors.get("buffers", {})
    told = manifest.for_weights().model_copy(
        update={"weights": weights_digest(tensors), "tensors": weight_records(tensors, buffers)}
    )
    with new_file(path) as file:
        save_file(tensors, file.name, {KEY: told.as_json(), "format": "pt"})
