"""The precision manifest of a checkpoint: which formats it was made in, read before anything else is.

A manifest is JSON. It stands in a checkpoint's archive as a record of its own, and in the header of exported
weights, so that no tensor and no pickle has to be touched to read it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from castiron.diagnostics import ManifestError, Place, RunError, finding
from castiron.policy import Plan, PrecisionPolicy
from castiron.training.checkpoint_file import read_record
from castiron.training.environment import versions

FORMAT = 1
"""Version of the layout."""
KEY = "castiron_manifest"
"""Where exported weights carry the manifest: the key in the metadata of a safetensors header."""

KINDS = ("parameters", "buffers", "optimizer", "masters", "average", "state")
"""What the tensors of a checkpoint are for."""

_SIDE = ("guard", "health", "enforce")
"""Sections of a policy that decide what is watched, and no number."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class TensorRecord(_Part):
    """Format and shape of a stored tensor."""

    dtype: str
    shape: tuple[NonNegativeInt, ...] = ()

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class OptimizerRecord(_Part):
    """An optimizer, but for its tensors."""

    type: str
    groups: tuple[NonNegativeInt, ...]
    """Parameters in each group."""


class Manifest(_Part):
    """What a checkpoint was made in. Made by `of_training`, read by `read_manifest`."""

    format: Annotated[int, Field(ge=1)] = FORMAT
    castiron: str
    versions: dict[str, str] = {}
    """Package → version, of what wrote it."""
    backend: str = "torch"
    recipe: str | None = None
    model: str = ""
    """Class of the model."""
    step: int | None = None
    epoch: int | None = None
    policy: str
    """The policy in force, in its short form."""
    policy_hash: str = ""
    declared: dict[str, Any]
    """The policy as it was declared, in full; a layer may have been widened since, as a response."""
    device: str = ""
    plan: dict[str, dict[str, str]] = {}
    """Layer → role → format."""
    tensors: dict[str, dict[str, TensorRecord]] = {}
    """Kind (`KINDS`) → name → format and shape."""
    optimizers: tuple[OptimizerRecord, ...] = ()
    scaler: dict[str, Any] | None = None
    """State of the loss scaler; None in exported weights."""
    assets: dict[str, str] = {}
    """File that the recipe learned from its data (a vocabulary) → BLAKE3."""
    weights: str = ""
    """BLAKE3 of the names, formats, shapes and bytes of parameters and buffers."""

    def as_json(self) -> str:
        return self.model_dump_json()

    def flat(self) -> Iterator[tuple[str, str, TensorRecord]]:
        """Kind, name and record of every tensor."""
        for kind, named in self.tensors.items():
            for name, record in named.items():
                yield kind, name, record

    def for_weights(self) -> Manifest:
        """The manifest of the weights alone."""
        kept = {k: v for k, v in self.tensors.items() if k in ("parameters", "buffers")}
        return self.model_copy(update={"tensors": kept, "optimizers": (), "scaler": None})


def of_training(
    policy: PrecisionPolicy,
    plan: Plan | None,
    tensors: Mapping[str, Mapping[str, TensorRecord]],
    *,
    declared: PrecisionPolicy | None = None,
    **told: Any,
) -> Manifest:
    """A manifest of what is being trained.

    Args:
        policy: in force.
        plan: in force.
        tensors: kind → name → record.
        declared: by the user; the one in force by default.
        **told: other fields of `Manifest`.
    """
    installed = versions()
    return Manifest(
        castiron=installed.get("castiron", ""),
        versions=installed,
        policy=str(policy),
        policy_hash=policy.hash(),
        declared=numbers_of(declared or policy),
        device=plan.device if plan else "",
        plan=plan_of(plan) if plan else {},
        tensors={kind: dict(named) for kind, named in tensors.items() if named},
        **told,
    )


def numbers_of(policy: PrecisionPolicy) -> dict[str, Any]:
    """All of a policy that decides numbers, JSON-ready."""
    return {k: v for k, v in policy.canonical().items() if k not in _SIDE}


def plan_of(plan: Plan) -> dict[str, dict[str, str]]:
    """Layer → role → format, of the layers that store or compute something."""
    return {
        row.path: {role: getattr(row, role) for role in ("param", "compute", "output", "buffers")}
        for row in plan.layers()
    }


def asset_digests(folder: Path) -> dict[str, str]:
    """File that a recipe learned from its data, below `assets` → its BLAKE3. The data itself is left out: it
    has digests of its own.

    Raises:
        RunError: a file cannot be read (X822).
    """
    found = {}
    try:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and name.split("/")[0] != "data":
                found[name] = blake3(path.read_bytes()).hexdigest()
    except OSError as e:
        message = f"The file cannot be read: {(e.strerror or str(e)).lower()}."
        raise RunError(finding("X822", message, place=Place(file=str(folder)))) from None
    return found


def parse(data: bytes | str, path: Path) -> Manifest:
    """A manifest from its JSON.

    Raises:
        ManifestError: it is none (C603), or of a later layout (C604).
    """
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise _unreadable(path, f"it is not JSON ({e})") from None
    if not isinstance(record, dict):
        raise _unreadable(path, "it is no mapping")
    layout = record.get("format")
    if isinstance(layout, int) and not isinstance(layout, bool) and layout > FORMAT:
        raise ManifestError(
            finding(
                "C604",
                "The checkpoint was written by a later version of castiron.",
                place=Place(file=str(path)),
                expected=f"a manifest of layout {FORMAT} or less",
                received=f"layout {layout}, of castiron {_short(record.get('castiron'))}",
            )
        )
    try:
        found = Manifest.model_validate(record)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(_short(part) for part in first["loc"])
        raise _unreadable(path, f"{where or 'the record'}: {first['msg']}") from None
    if odd := sorted(set(found.tensors) - set(KINDS)):
        raise _unreadable(path, f"tensors.{_short(odd[0])}: no such kind of tensors")
    return found


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of a checkpoint or of exported weights; None where it has none. Executes nothing.

    Raises:
        ManifestError: the file is damaged (C601), its manifest is none (C603) or of a later layout (C604).
    """
    if path.suffix == ".safetensors":
        from castiron.training.inspection.safetensors import header

        text = header(path)[0].get(KEY)
        return None if text is None else parse(text, path)
    data = read_record(path)
    return None if data is None else parse(data, path)


def _unreadable(path: Path, reason: str) -> ManifestError:
    return ManifestError(
        finding("C603", f"The checkpoint's manifest cannot be read: {reason}.", place=Place(file=str(path)))
    )


def _short(value: Any) -> str:
    """A foreign value as text that fits a line."""
    text = re.sub(r"[^\x20-\x7e]", "?", str(value))
    return text if len(text) <= 80 else text[:77] + "…"
