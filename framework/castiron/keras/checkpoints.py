"""Checkpoints of a run: `last.safetensors` to resume from, `best.safetensors` to use; each appears whole or
not at all. Reading one runs no code from it."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from castiron.diagnostics import Place, RunError, finding
from castiron.keras.dtypes import dtype_name
from castiron.keras.module import RecipeModel
from castiron.keras.modules import variables
from castiron.training.run_directory import written

_STATE = "castiron"


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


def write(path: Path, module: RecipeModel, state: dict[str, Any]) -> None:
    """Write everything that training goes on from.

    Args:
        state: JSON-ready; comes back from `read`.

    Raises:
        RunError: the disk is full, or the folder cannot be written (X819).
    """
    arrays, dtypes = {}, {}
    for name, variable in _named(module, training=True).items():
        value = np.ascontiguousarray(variable.numpy())
        dtypes[name] = dtype_name(variable.dtype)
        # Safetensors for NumPy knows its own types only: others go as whole numbers of their size.
        arrays[name] = value if value.dtype.kind in "fiub" else value.view(f"u{value.dtype.itemsize}")
        arrays[name] = arrays[name].reshape(variable.shape.as_list())
    told = {**state, "scaler": module.scaler.state_dict(), "dtypes": dtypes, "policy": str(module.policy)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(arrays, temporary, {_STATE: json.dumps(told)})
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def read_state(path: Path) -> dict[str, Any]:
    """What `write` was given as state.

    Raises:
        RunError: the file is missing or damaged (X822).
    """
    try:
        with safe_open(path, "np") as file:
            state: dict[str, Any] = json.loads((file.metadata() or {})[_STATE])
            state["step"], state["dtypes"]
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as e:
        raise _not_loaded(path, str(e) or type(e).__name__) from e
    return state


def load(path: Path, module: RecipeModel, *, training: bool) -> dict[str, Any]:
    """Give a model what a checkpoint holds. → the state that it was written with.

    Args:
        training: also optimizer, scaler and average, to go on; else the weights alone, averaged where the run
            kept an average.

    Raises:
        RunError: the file is damaged, or of another model or optimizer (X822).
    """
    state = read_state(path)
    own = _named(module, training=training)
    try:
        with safe_open(path, "np") as file:
            known = set(file.keys())
            for name, variable in own.items():
                source = name
                average = name.replace("model/", "average/", 1)
                if not training and name.startswith("model/") and average in known:
                    source = average
                if source not in known:
                    raise _not_loaded(path, f"it has no '{source}'")
                array = file.get_tensor(source)
                array = array.view(tf.as_dtype(state["dtypes"][source]).as_numpy_dtype)
                if list(array.shape) != variable.shape.as_list():
                    raise _not_loaded(
                        path, f"'{source}' has the shape {tuple(array.shape)}, here {tuple(variable.shape)}"
                    )
                variable.assign(tf.cast(array.reshape(variable.shape.as_list()), variable.dtype))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as e:
        raise _not_loaded(path, str(e) or type(e).__name__) from e
    if training:
        module.scaler.load_state_dict(state["scaler"])
    return state


def _named(module: RecipeModel, *, training: bool) -> dict[str, Any]:
    """Name within a checkpoint → tf.Variable."""
    named = {f"model/{n}": v._value for n, v in variables(module.model).items()}
    if not training:
        return named
    known = {id(v) for v in named.values()}
    others = [v for v in module.core.snapshot.variables if id(v) not in known]
    named |= {f"state/{i}": v for i, v in enumerate(others)}
    named |= {f"optimizer/{i}": v for i, v in enumerate(module.updates.variables())}
    if module.average is not None:
        named |= {f"average/{n}": v for n, v in module.average.averages.items()}
        named["averaged"] = module.average.updates
    return named


def _not_loaded(path: Path, reason: str) -> RunError:
    first = reason.strip().splitlines()[0]
    return RunError(finding("X822", f"The checkpoint cannot be loaded: {first}", place=Place(file=str(path))))
