"""A held step, kept: the folder that it can be run again from.

Tensors are stored as safetensors, their arrangement as JSON: reading one runs no code from it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from castiron.keras.modules import own_variables, variables, walk
from castiron.keras.replay.step import ReplayStep
from castiron.policy import Plan
from castiron.training.environment import describe_environment
from castiron.training.held import Origin, Verdict, row_numbers
from castiron.training.incident import Incident
from castiron.training.incident_folder import (
    ASSETS,
    BATCH,
    BUFFERS,
    OPTIMIZER,
    PARAMETERS,
    RNG,
    Content,
    IncidentFolder,
    write_incident,
)
from castiron.training.run_directory import CONFIG, ENVIRONMENT, PLAN

PARAMETERS_LIMIT = 256 << 20
"""Bytes of parameters that an incident stores; of optimizer state twice as many."""
_MOST_ROWS = 10_000


def store(
    incident: Incident,
    step: ReplayStep,
    parent: Path,
    *,
    plan: Plan | None = None,
    config: str | None = None,
    assets: Path | None = None,
    facts: Mapping[str, Any] | None = None,
    origin: Origin | None = None,
) -> Path:
    """Write the folder of an incident. → the folder.

    Call it when the step is held: every variable is as before it.

    Args:
        incident: the record.
        step: the held step.
        parent: the run's folder `incidents`.
        plan: the plan in force.
        config: the run's resolved config, as YAML.
        assets: a folder with what the recipe learned from its data.
        facts: JSON-ready; what the caller needs to run the step again.
        origin: names the file and line of rows.

    Raises:
        RunError: the disk is full, or the folder cannot be written (X819).
    """
    files: dict[str, Content] = {ENVIRONMENT: json.dumps(describe_environment(), indent=2, default=str)}
    left_out: dict[str, str] = {}
    structures: dict[str, Any] = {}
    if plan is not None:
        files[PLAN] = plan.model_dump_json(indent=2) + "\n"
    if config is not None:
        files[CONFIG] = config
    parameters, buffers, seeds, state = _state_of(step)
    for name, tree in ((BATCH, list(step.batches)), (RNG, seeds), (BUFFERS, buffers)):
        files[name], structures[name] = pack(tree)
    size = sum(v.nbytes for v in parameters.values())
    for name, tree, limit in (
        (PARAMETERS, parameters, PARAMETERS_LIMIT),
        (OPTIMIZER, state, 2 * PARAMETERS_LIMIT),
    ):
        size = sum(v.nbytes for v in tree.values())
        if size <= limit:
            files[name], structures[name] = pack(tree)
        else:
            left_out[name] = f"its {size:,} bytes are more than {limit:,}"
    if assets is not None:
        files[ASSETS] = assets
    told = {
        "kind": "keras",
        "wing": "tensorflow",
        "root": f"{type(step.core.model).__module__}.{type(step.core.model).__qualname__}",
        "device": "cuda" if tf.config.list_logical_devices("GPU") else "cpu",
        "scale": step.scale,
        "verdict": dataclasses.asdict(step.verdict),
        "structures": structures,
        "origins": _origins(step.batches, origin),
        **(facts or {}),
    }
    return write_incident(parent, incident, facts=told, files=files, left_out=left_out)


class StoredStep:
    """The tensors of an incident's folder, to put into a model of the same kind."""

    def __init__(self, folder: IncidentFolder) -> None:
        self.folder = folder

    @property
    def verdict(self) -> Verdict:
        """What the guard saw."""
        told = self.folder.facts.get("verdict", {})
        seen = {what: tuple(names) for what, names in told.get("seen", {}).items()}
        return Verdict(bool(told.get("bad", True)), seen, tuple(told.get("micro_batches", ())))

    @property
    def scale(self) -> float:
        """The loss scale that the step ran with."""
        return float(self.folder.facts.get("scale", 1.0))

    def origin(self, row: int) -> str:
        """File and line of a row, as far as they were stored."""
        return str(self.folder.facts.get("origins", {}).get(str(row), f"row {row}"))

    def batches(self) -> list[Any]:
        """The micro-batches, as tensors."""
        return list(
            tf.nest.map_structure(lambda a: None if a is None else tf.convert_to_tensor(a), self._tree(BATCH))
        )

    def put(self, core: Any) -> None:
        """Give a model and its optimizer the values of before the step.

        Raises:
            CastironError: they are another model's, or there are none (N515).
        """
        parameters, buffers = _named(core.model)
        seeds, slots = _seeds(core), _slots(core)
        for kind, own, name in (
            ("parameter", parameters, PARAMETERS),
            ("buffer", buffers, BUFFERS),
            ("seed", seeds, RNG),
            ("optimizer variable", slots, OPTIMIZER),
        ):
            stored = self._tree(name)
            self._fit(kind, own, stored)
            for key, variable in own.items():
                variable.assign(tf.cast(tf.convert_to_tensor(stored[key]), variable.dtype))
        core.updates.adopt()

    def _tree(self, name: str) -> Any:
        path = self.folder.file(name)
        structure = self.folder.facts.get("structures", {}).get(name)
        if structure is None:
            raise self.folder.damaged("state.json", f"it says nothing of '{name}'")
        try:
            return unpack(path.read_bytes(), structure)
        except (SafetensorError, KeyError, ValueError, TypeError) as e:
            raise self.folder.damaged(name, str(e)) from None

    def _fit(self, kind: str, own: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
        for name in (*own, *stored):
            here, there = own.get(name), stored.get(name)
            if here is not None and there is not None and tuple(here.shape) == tuple(there.shape):
                continue
            expected, received = (
                f"no {kind} '{name}'" if t is None else f"{kind} '{name}' {tuple(t.shape)}"
                for t in (there, here)
            )
            raise self.folder.not_replayable(
                "The model is not the one that the step was taken with.",
                "Make the model as it was then: the same code, and the settings in config.yaml.",
                expected=expected,
                received=received,
            )


# --- tensors -------------------------------------------------------------------------------------------


def pack(tree: Any) -> tuple[bytes, Any]:
    """Nested mappings and sequences of arrays and tensors → safetensors' bytes, and their arrangement."""
    arrays: dict[str, np.ndarray] = {}

    def leave(leaf: Any) -> Any:
        if isinstance(leaf, Mapping):
            return {"dict": {str(k): leave(v) for k, v in leaf.items()}}
        if isinstance(leaf, (list, tuple)):
            return {"list" if isinstance(leaf, list) else "tuple": [leave(v) for v in leaf]}
        if leaf is None:
            return {"none": True}
        array = np.ascontiguousarray(leaf.numpy() if hasattr(leaf, "numpy") else np.asarray(leaf))
        key = f"t{len(arrays)}"
        kind = str(array.dtype)
        # Safetensors for NumPy knows its own types only: others go as whole numbers of their size.
        known = array.dtype.kind in "fiub"
        arrays[key] = array if known else array.view(np.dtype(f"u{array.dtype.itemsize}"))
        return {"tensor": key, "dtype": kind, "shape": [int(n) for n in np.shape(leaf)]}

    structure = leave(tree)
    return save_tensors(arrays), structure


def unpack(data: bytes, structure: Any) -> Any:
    """What `pack` was given, as arrays."""
    arrays = load_tensors(data)

    def build(entry: Any) -> Any:
        if "dict" in entry:
            return {k: build(v) for k, v in entry["dict"].items()}
        if "list" in entry:
            return [build(v) for v in entry["list"]]
        if "tuple" in entry:
            return tuple(build(v) for v in entry["tuple"])
        if "none" in entry:
            return None
        array = arrays[entry["tensor"]]
        return array.view(tf.as_dtype(entry["dtype"]).as_numpy_dtype).reshape(entry["shape"])

    return build(structure)


def _named(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Full name → tf.Variable, of parameters and of buffers."""
    kept = {id(v) for _, layer in walk(model) for v in own_variables(layer)[1]}
    named = variables(model)
    return (
        {n: v._value for n, v in named.items() if id(v) not in kept},
        {n: v._value for n, v in named.items() if id(v) in kept},
    )


def _seeds(core: Any) -> dict[str, Any]:
    """What else a forward pass changes: the states of generators, by their order."""
    parameters, buffers = _named(core.model)
    named = {id(v) for v in (*parameters.values(), *buffers.values())}
    return {str(i): v for i, v in enumerate(v for v in core.snapshot.variables if id(v) not in named)}


def _slots(core: Any) -> dict[str, Any]:
    """The states of its optimizers, by their order."""
    return {str(i): v._value for i, v in enumerate([*core.updates.optimizer.variables, *core.others])}


def _state_of(step: ReplayStep) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
    def values(named: Mapping[str, Any]) -> dict[str, Any]:
        return {n: v.numpy() if hasattr(v, "numpy") else np.asarray(v) for n, v in named.items()}

    parameters, buffers = _named(step.core.model)
    slots = _slots(step.core)
    return (
        {n: np.asarray(v) for n, v in values(parameters).items()},
        values(buffers),
        values(_seeds(step.core)),
        {n: np.asarray(v) for n, v in values(slots).items()},
    )


def _origins(batches: Sequence[Any], origin: Origin | None) -> dict[str, str]:
    if origin is None:
        return {}
    numbers = [n for batch in batches for n in row_numbers(batch) or ()]
    return {str(n): origin(n) for n in numbers[:_MOST_ROWS]}
