"""Checkpoints of a run: `last.safetensors` to resume from, `best.safetensors` to use; each appears whole or
not at all, sealed and with its precision manifest. Reading one runs no code from it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from castiron.diagnostics import Finding, ManifestError, Place, finding
from castiron.keras.manifest import cast, expected_of, manifest_of, named
from castiron.keras.module import RecipeModel
from castiron.keras.workers import seed_states
from castiron.training.checkpoint_file import (
    SEAL,
    STATE,
    UNSEALED,
    check_intact,
    damaged,
    new_file,
    seal_safetensors,
)
from castiron.training.inspection.safetensors import header
from castiron.training.manifest import KEY, Manifest, TensorRecord, read_manifest
from castiron.training.manifest_check import OnMismatch, Row, cast_told, check, overflow, same_content
from castiron.training.ranks import Peers


def random_state() -> dict[str, Any]:
    """The state of Python's and NumPy's generators, JSON-ready. Those of layers are variables."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put the generators back to what `random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.asarray(keys, np.uint32), position, has_gauss, cached))


def random_states(module: RecipeModel, peers: Peers) -> dict[str, Any]:
    """The generators of this process; where several train, those of all, with what each layer's generator and
    recurrent state is there. All have to call it."""
    if module.workers is None:
        return random_state()
    own = [v.numpy().tolist() for v in module.workers.own(module.core.snapshot.variables)]
    return {"ranks": peers.gather({**random_state(), "layers": own})}


def restore_random_states(module: RecipeModel, peers: Peers, state: dict[str, Any]) -> str:
    """Put this process's generators back to what `random_states` returned; those of layers are rank 0's.

    → what there is to say where another number of processes returned it: no generator goes on then where it
    was.
    """
    states = state.get("ranks", [state])
    if len(states) != peers.world:
        if module.workers is not None:
            module.workers.draw_apart(seed_states(module.model))
        return (
            f"The checkpoint is of {len(states)} processes, the run goes on with {peers.world}: the same "
            "batches in the same order; random numbers drawn in training (dropout) are other ones."
        )
    own = states[peers.rank]
    restore_random_state(own)
    if module.workers is not None:
        layers = module.workers.own(module.core.snapshot.variables)
        for variable, value in zip(layers, own["layers"], strict=True):
            variable.assign(np.asarray(value, variable.dtype.as_numpy_dtype))
    return ""


def write(
    path: Path,
    module: RecipeModel,
    state: dict[str, Any],
    *,
    assets: Mapping[str, str] | None = None,
    replacing: Callable[[], None] | None = None,
) -> None:
    """Write everything that training goes on from.

    Args:
        state: JSON-ready, with `step`; comes back from `read_state`.
        assets: file that the recipe learned → its digest.
        replacing: called when the new file is on the disk, right before it takes its name.

    Raises:
        RunError: the disk is full, or the folder cannot be written (X819). What was there stays.
    """
    found = named(module, training=True)
    arrays = {}
    for kind, own in found.items():
        for name, variable in own.items():
            value = np.ascontiguousarray(variable.numpy())
            # Safetensors for NumPy knows its own types only: others go as whole numbers of their size.
            plain = value if value.dtype.kind in "fiub" else value.view(f"u{value.dtype.itemsize}")
            arrays[f"{kind}/{name}"] = plain.reshape(variable.shape.as_list())
    manifest = manifest_of(module, found, arrays, step=state["step"], assets=dict(assets or {}))
    words = {STATE: json.dumps(state), KEY: manifest.as_json(), SEAL: UNSEALED}
    with new_file(path, replacing) as file:
        save_file(arrays, file.name, words)
        seal_safetensors(Path(file.name))


def read_state(path: Path) -> dict[str, Any]:
    """What `write` was given as state.

    Raises:
        ManifestError: the file is missing or damaged (C601), or is none of castiron's (C602).
    """
    return _opened(path)[0]


def load(
    path: Path,
    module: RecipeModel,
    *,
    training: bool,
    assets: Mapping[str, str] | None = None,
    on_mismatch: OnMismatch = "refuse",
) -> list[Finding]:
    """Give a model what a checkpoint holds. → what there is to tell.

    Everything is read and verified before the first variable is written to.

    Args:
        training: also optimizer, scaler and average, to go on; else the weights alone, averaged where the run
            kept an average.
        assets: file that the recipe learned → its digest; compared with those of the checkpoint.
        on_mismatch: what is done with tensors of other formats.

    Raises:
        ManifestError: the file is damaged, or of another model, recipe or policy (C6xx).
    """
    _, manifest, stored = _opened(path)
    same_content(manifest, stored, path)
    expected = expected_of(module, manifest, training=training, assets=assets)
    told = check(manifest, expected, path, on_mismatch)
    cast_rows = _give(path, module, manifest, training=training)
    same_scaling = (manifest.scaler or {}).get("kind") == module.scaler.kind if training else False
    if training and same_scaling:
        module.scaler.load_state_dict(dict(manifest.scaler or {}))
    if training and not manifest.tensors.get("masters"):
        module.updates.adopt()
    return [f for f in told if f.severity != "error"] + ([cast_told(cast_rows, path)] if cast_rows else [])


def put_back(path: Path, module: RecipeModel) -> None:
    """Give a live training what it wrote itself a while ago.

    Raises:
        ManifestError: the file is damaged (C601).
    """
    _, manifest, _ = _opened(path)
    _give(path, module, manifest, training=True)
    module.scaler.load_state_dict(dict(manifest.scaler or {}))


def _opened(path: Path) -> tuple[dict[str, Any], Manifest, dict[str, dict[str, TensorRecord]]]:
    """State, manifest, and what is stored in the file by its header, of a file that is whole."""
    check_intact(path)
    manifest = read_manifest(path)
    words, tensors = header(path)
    if manifest is None or STATE not in words:
        raise ManifestError(
            finding("C602", "The checkpoint carries no precision manifest.", place=Place(file=str(path)))
        )
    try:
        state: dict[str, Any] = json.loads(words[STATE])
        state["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise damaged(path, "what it says of the training cannot be read") from None
    stored: dict[str, dict[str, TensorRecord]] = {}
    for full, there in tensors.items():
        kind, _, name = full.partition("/")
        told = manifest.tensors.get(kind, {}).get(name)
        if told is not None and _stored_as(told.dtype) == there.dtype:
            there = there.model_copy(update={"dtype": told.dtype})
        stored.setdefault(kind, {})[name] = there
    return state, manifest, stored


def _stored_as(dtype: str) -> str:
    """The format of the bytes of a format, as `write` has them."""
    try:
        own = np.dtype(tf.as_dtype(dtype).as_numpy_dtype)
    except TypeError:
        return dtype
    return dtype if own.kind in "fiub" else f"uint{8 * own.itemsize}"


def _give(path: Path, module: RecipeModel, manifest: Manifest, *, training: bool) -> list[Row]:
    """Write to the variables. → a row for each that was cast.

    Raises:
        ManifestError: a value overflows in the format asked for (C614), or the file cannot be read (C601).
            Nothing was written then.
    """
    given: list[tuple[Any, Any]] = []
    rows: list[Row] = []
    averages = {} if training else manifest.tensors.get("average", {})
    try:
        with safe_open(path, "np") as file:
            for kind, own in named(module, training=training).items():
                for name, variable in own.items():
                    source = "average" if kind in ("parameters", "buffers") and name in averages else kind
                    told = manifest.tensors.get(source, {}).get(name)
                    if told is None:  # a master copy that the checkpoint's policy had none of
                        continue
                    stored = tf.as_dtype(told.dtype)
                    value = file.get_tensor(f"{source}/{name}").view(stored.as_numpy_dtype)
                    value = value.reshape(variable.shape.as_list())
                    if stored == variable.dtype:
                        given.append((variable, value))
                        continue
                    narrow, row = cast(value, told.dtype, variable.dtype, (kind, name))
                    given.append((variable, narrow))
                    if source == kind:  # averages are wide on purpose
                        rows.append(row)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as e:
        raise damaged(path, (str(e) or type(e).__name__).strip().splitlines()[0]) from e
    if bad := [row for row in rows if "infinite" in str(row[3])]:
        raise overflow(bad, path)
    for variable, value in given:
        variable.assign(value)
    return rows
