"""A held step, kept: the record of it, and the folder that it can be run again from (`stored_step`).

Written once the step is held and everything is as it was before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from castiron.policy import Plan
from castiron.torch.incident_tensors import pack, random_state
from castiron.torch.modules import devices_of
from castiron.torch.replay.step import ReplayStep
from castiron.training.environment import describe_environment
from castiron.training.held import Origin
from castiron.training.incident import Incident
from castiron.training.incident_folder import (
    ASSETS,
    BATCH,
    BUDGET,
    BUFFERS,
    OPTIMIZER,
    PARAMETERS,
    RNG,
    Content,
    digest_of,
    write_incident,
)
from castiron.training.run_directory import CONFIG, ENVIRONMENT, PLAN

_MOST_ROWS = 10_000
"""Rows of a step whose places are stored."""
PARAMETERS_LIMIT = 256 << 20
"""Bytes of parameters that an incident stores; larger models are known by a checkpoint, or not at all."""


def store(
    incident: Incident,
    step: ReplayStep,
    parent: Path,
    *,
    kind: str,
    plan: Plan | None = None,
    config: str | None = None,
    assets: Path | None = None,
    code: Path | None = None,
    facts: Mapping[str, Any] | None = None,
    origin: Origin | None = None,
    checkpoint: Path | None = None,
    parameters_limit: int = PARAMETERS_LIMIT,
    budget: int = BUDGET,
) -> Path:
    """Write the folder of an incident. → the folder.

    Call it when the step is held: parameters and optimizer state are as before it. Buffers and random
    generators are put back to before it.

    Args:
        incident: the record.
        step: the held step.
        parent: the run's folder `incidents`.
        kind: what has to be there to run it again: "recipe", "module" or "loop".
        plan: the plan in force.
        config: the run's resolved config, as YAML.
        assets: a folder with what the recipe learned from its data.
        code: a file of the user's code, for the state of its repository.
        facts: JSON-ready; what the caller needs to run the step again.
        origin: names the file and line of rows.
        checkpoint: a file with these very parameters, to refer to where they are too large to store.
        parameters_limit: bytes of parameters that are stored; of optimizer state twice as many.
        budget: bytes of tensors and assets of all incidents below `parent`.

    Raises:
        RunError: the disk is full, or the folder cannot be written (X819).
    """
    step.restore()
    root = step.root
    structures: dict[str, Any] = {}
    files: dict[str, Content] = {ENVIRONMENT: _json(describe_environment(code))}
    left_out: dict[str, str] = {}
    if plan is not None:
        files[PLAN] = plan.model_dump_json(indent=2) + "\n"
    if config is not None:
        files[CONFIG] = config

    def put(name: str, tree: Any) -> None:
        files[name], structures[name] = pack(tree)

    put(BATCH, list(step.batches))
    put(RNG, random_state())
    put(BUFFERS, dict(root.named_buffers()))
    parameters = dict(root.named_parameters())
    size = sum(p.nbytes for p in parameters.values())
    told: dict[str, Any] = {}
    if size <= parameters_limit:
        put(PARAMETERS, parameters)
        state = [_state_of(optimizer, parameters) for optimizer in step.optimizers]
        if (state_size := sum(_bytes_in(s) for s in state)) <= 2 * parameters_limit:
            put(OPTIMIZER, state)
        else:
            left_out[OPTIMIZER] = f"its {state_size:,} bytes are more than {2 * parameters_limit:,}"
    else:
        left_out[PARAMETERS] = left_out[OPTIMIZER] = (
            f"the {size:,} bytes of parameters are more than {parameters_limit:,}"
        )
        if checkpoint is not None:
            told["checkpoint"] = {"path": str(checkpoint.resolve()), "blake3": digest_of(checkpoint)}
    if assets is not None:
        files[ASSETS] = assets
    told |= {
        "kind": kind,
        "root": f"{type(root).__module__}.{type(root).__qualname__}",
        "device": _device_type(root),
        "scale": step.scale,
        "verdict": dataclasses.asdict(step.verdict),
        "not_training": [name for name, module in root.named_modules() if not module.training],
        "structures": structures,
        "origins": _origins(step.batches, origin),
        **(facts or {}),
    }
    return write_incident(
        parent, incident, facts=_finite(told), files=files, left_out=left_out, budget=budget
    )


def _origins(batches: Sequence[Any], origin: Origin | None) -> dict[str, str]:
    """Row number, as text → `file:line`, of the rows of a step."""
    if origin is None:
        return {}
    rows = [b["row"] for b in batches if isinstance(b, Mapping) and isinstance(b.get("row"), Tensor)]
    numbers = [int(n) for row in rows for n in row.reshape(-1)[:_MOST_ROWS].tolist()]
    return {str(n): origin(n) for n in numbers[:_MOST_ROWS]}


def _state_of(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
    """An optimizer's state, and the names of the parameters that its numbers stand for."""
    names = {id(p): n for n, p in parameters.items()}
    own = [names.get(id(p), "") for group in optimizer.param_groups for p in group["params"]]
    return {"state": optimizer.state_dict(), "names": own}


def _bytes_in(tree: Any) -> int:
    if isinstance(tree, Tensor):
        return tree.nbytes
    if isinstance(tree, Mapping):
        return sum(_bytes_in(v) for v in tree.values())
    return sum(_bytes_in(v) for v in tree) if isinstance(tree, list | tuple) else 0


def _device_type(root: nn.Module) -> str:
    types = sorted({device.type for device in devices_of(root)} - {"meta"})
    return types[-1] if types else "cpu"


def _json(value: Any) -> str:
    import json

    return json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no infinities: these become text."""
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return repr(value)
    return value
