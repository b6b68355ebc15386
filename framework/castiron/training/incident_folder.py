"""The folder of an incident, `incidents/step-N/`: all that running the step again needs, on any machine.

`incident.json` (the record), `state.json` (small facts, and a digest of every other file), `plan.json`,
`config.yaml`, `environment.json`, `assets/` (what the recipe learned from its data), and tensors:
`batch.safetensors`, `buffers.safetensors`, `rng.safetensors`, `parameters.safetensors`,
`optimizer.safetensors`.

A folder appears whole or not at all. Reading one runs no code from it: JSON, YAML and safetensors only, each
file held against its digest first.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from blake3 import blake3
from pydantic import ValidationError

from castiron.diagnostics import CastironError, Finding, Place, RunError, finding
from castiron.policy import Plan
from castiron.training.checkpoint_file import PART
from castiron.training.incident import Incident
from castiron.training.run_directory import CONFIG, INCIDENTS, PLAN
from castiron.training.suggestions import did_you_mean, near
from castiron.training.writing import fsync_folder, written

FORMAT = 1
"""Version of the layout."""
INCIDENT = "incident.json"
STATE = "state.json"
BATCH = "batch.safetensors"
BUFFERS = "buffers.safetensors"
RNG = "rng.safetensors"
PARAMETERS = "parameters.safetensors"
OPTIMIZER = "optimizer.safetensors"
ASSETS = "assets"

BUDGET = 4 << 30
"""Bytes of tensors and assets that all incidents of a run may take together."""
_MOST_TEXT = 64 << 20
"""Bytes of a JSON or YAML file; a larger one was not written here."""
_NAME = re.compile(r"step-(\d+)(?:-(\d+))?")

Content = bytes | str | Path


def digest_of(path: Path) -> str:
    """The BLAKE3 of a file's bytes, in hexadecimal."""
    return blake3().update_mmap(path).hexdigest()


# --- writing -------------------------------------------------------------------------------------------


def write_incident(
    parent: Path,
    incident: Incident,
    *,
    facts: Mapping[str, Any] | None = None,
    files: Mapping[str, Content] | None = None,
    left_out: Mapping[str, str] | None = None,
    budget: int = BUDGET,
) -> Path:
    """Write the folder of an incident, synced to the disk. → the folder.

    Args:
        parent: the run's folder `incidents`; made where it is missing.
        incident: the record.
        facts: JSON-ready; comes back as `IncidentFolder.facts`.
        files: name within the folder → content; a path is a file to copy, or a folder with all that is in it.
        left_out: name of a file that the caller chose not to store → why.
        budget: bytes that tensors and assets of all incidents below `parent` may take. What does not fit is
            left out, in the order of `files`, and the record says so.

    Raises:
        RunError: the disk is full, or the folder cannot be written (X819). Nothing is left behind then.
    """
    missing = dict(left_out or {})
    with written(parent):
        parent.mkdir(parents=True, exist_ok=True)
        part = parent / f".step-{incident.step}.{secrets.token_hex(4)}{PART}"
        try:
            part.mkdir()
            room = budget - _taken(parent)
            listed: dict[str, dict[str, Any]] = {}
            for name, content in (files or {}).items():
                size = _size(content)
                if _is_large(name):
                    if size > room:
                        missing[name] = (
                            f"its {size:,} bytes do not fit into the {budget:,} of a run's incidents"
                        )
                        continue
                    room -= size
                for inner in _put(part, name, content):
                    path = part / inner
                    listed[inner] = {"bytes": path.stat().st_size, "blake3": digest_of(path)}
            record = incident.model_dump_json(indent=2).encode() + b"\n"
            _put(part, INCIDENT, record)
            listed[INCIDENT] = {"bytes": len(record), "blake3": blake3(record).hexdigest()}
            state = {
                "format": FORMAT,
                "castiron": incident.castiron,
                "facts": dict(facts or {}),
                "left_out": missing,
                "files": listed,
            }
            _put(part, STATE, json.dumps(state, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
            for folder in {part, *(p.parent for p in part.rglob("*"))}:
                fsync_folder(folder)
            return _named(part, incident.step)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def _named(part: Path, step: int) -> Path:
    """Give a finished folder its name, `step-N`, or `step-N-2` and so on where that is taken."""
    for attempt in range(1, 100_000):
        path = part.parent / (f"step-{step}" if attempt == 1 else f"step-{step}-{attempt}")
        if path.exists():
            continue
        try:
            part.rename(path)
        except OSError as e:
            if e.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster
                continue
            raise
        fsync_folder(part.parent)
        return path
    raise OSError(errno.EEXIST, f"{part.parent} has too many incidents of step {step}")


def _put(folder: Path, name: str, content: Content) -> list[str]:
    """Write one entry. → the names of the files it made."""
    if isinstance(content, Path) and content.is_dir():
        inside = sorted(p for p in content.rglob("*") if p.is_file())
        return [n for p in inside for n in _put(folder, f"{name}/{p.relative_to(content).as_posix()}", p)]
    path = folder / _safe(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb") as file:
        if isinstance(content, Path):
            with open(content, "rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)
        else:
            file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    return [name]


def _size(content: Content) -> int:
    if not isinstance(content, Path):
        return len(content)
    files = content.rglob("*") if content.is_dir() else [content]
    return sum(p.stat().st_size for p in files if p.is_file())


def _is_large(name: str) -> bool:
    return name.endswith(".safetensors") or name.split("/")[0] == ASSETS


def _taken(parent: Path) -> int:
    """Bytes of tensors and assets in the incidents that are there already."""
    return sum(
        _size(path)
        for folder in listed_incidents(parent)
        for path in (*folder.glob("*.safetensors"), folder / ASSETS)
        if path.exists()
    )


def _safe(name: str) -> PurePosixPath:
    """A name that stays within its folder."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise ValueError(f"Expected a name within the incident's folder. Received {name!r}.")
    return path


# --- reading -------------------------------------------------------------------------------------------


def listed_incidents(parent: Path) -> list[Path]:
    """The folders of incidents below `parent`, by step."""
    found = []
    for path in parent.glob("step-*"):
        if (match := _NAME.fullmatch(path.name)) and (path / INCIDENT).is_file():
            found.append((int(match[1]), int(match[2] or 1), path))
    return [path for _, _, path in sorted(found)]


class IncidentFolder:
    """An incident's folder, to read. Make one with `open`."""

    def __init__(self, path: Path, incident: Incident, state: Mapping[str, Any]) -> None:
        self.path = path
        self.incident = incident
        self.facts: Mapping[str, Any] = state["facts"]
        """What the wing noted beside the tensors."""
        self.left_out: Mapping[str, str] = state["left_out"]
        """File that was not stored → why."""
        self._files: Mapping[str, Mapping[str, Any]] = state["files"]
        self._checked: set[str] = set()

    @classmethod
    def open(cls, path: str | Path) -> IncidentFolder:
        """Read the record of an incident.

        Args:
            path: its folder or its `incident.json`; or a run's folder, where the run has one incident.

        Raises:
            CastironError: there is none (N512), it is damaged (N513), or of another layout (N514).
        """
        folder = _found(Path(path))
        state = _json(folder, STATE)
        if not isinstance(state, dict) or not isinstance(state.get("format"), int):
            raise _damaged(folder / STATE, "it is not the index of an incident")
        if state["format"] != FORMAT:
            raise CastironError(
                finding(
                    "N514",
                    "The incident was written by another version of castiron.",
                    place=Place(file=str(folder)),
                    expected=f"layout {FORMAT}",
                    received=f"layout {state['format']}, of castiron {state.get('castiron') or '(unknown)'}",
                )
            )
        kinds = {"facts": dict, "left_out": dict, "files": dict}
        if any(not isinstance(state.get(key), kind) for key, kind in kinds.items()) or not all(
            isinstance(v, dict) and isinstance(v.get("blake3"), str) and isinstance(v.get("bytes"), int)
            for v in state["files"].values()
        ):
            raise _damaged(folder / STATE, "it is not the index of an incident")
        record = _text(folder, INCIDENT)
        try:
            incident = Incident.model_validate_json(record)
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise _damaged(folder / INCIDENT, f"{where or 'the record'}: {first['msg']}") from None
        opened = cls(folder, incident, state)
        opened.file(INCIDENT)
        return opened

    def has(self, name: str) -> bool:
        """Whether a file was stored."""
        return name in self._files

    def names(self, folder: str) -> list[str]:
        """The stored files below a folder of the incident."""
        return [name for name in self._files if name.startswith(f"{folder}/")]

    def file(self, name: str) -> Path:
        """The path of a stored file, which is what was written.

        Raises:
            CastironError: it was not stored (N515), or is not what was written (N513).
        """
        if name not in self._files:
            why = self.left_out.get(name)
            raise self.not_replayable(f"'{name}' was not stored{f': {why}' if why else ''}.")
        try:
            path = self.path / _safe(name)
        except ValueError:
            raise _damaged(self.path / STATE, f"it names a file outside of the folder: {name!r}") from None
        if name in self._checked:
            return path
        if not path.is_file():
            raise _damaged(path, "it is missing")
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise _damaged(path, "it is a link that leads out of the folder")
        expected = self._files[name]
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise _damaged(path, "it is cut off or has grown", f"{expected['bytes']:,} bytes", f"{size:,}")
        if digest_of(path) != expected["blake3"]:
            raise _damaged(path, "its content has changed since it was written")
        self._checked.add(name)
        return path

    def folder(self, name: str) -> Path:
        """The path of a stored folder, every file of which is what was written.

        Raises:
            CastironError: as `file`.
        """
        for inner in self.names(name):
            self.file(inner)
        return self.path / _safe(name)

    def bytes(self, name: str) -> bytes:
        """The content of a stored file.

        Raises:
            CastironError: as `file`.
        """
        return self.file(name).read_bytes()

    def plan(self) -> Plan:
        """The plan that was in force.

        Raises:
            CastironError: it was not stored (N515), or is damaged (N513).
        """
        path = self.file(PLAN)
        try:
            return Plan.model_validate_json(path.read_bytes())
        except ValidationError as e:
            raise _damaged(path, f"it is no plan: {e.errors()[0]['msg']}") from None

    @property
    def config(self) -> Path | None:
        """The run's resolved config; None where the run had none (a module of the user's own)."""
        return self.file(CONFIG) if self.has(CONFIG) else None

    def not_replayable(self, message: str, remedy: str | None = None, **told: str) -> CastironError:
        """The error that says why this incident cannot be run again (N515)."""
        return CastironError(
            finding("N515", message, place=Place(file=str(self.path)), remedy=remedy, **told)  # type: ignore[arg-type]
        )

    def damaged(self, name: str, reason: str) -> CastironError:
        """The error that says what is wrong with a file (N513)."""
        return _damaged(self.path / name, reason)


def _found(path: Path) -> Path:
    if path.name in (INCIDENT, STATE) and path.is_file():
        path = path.parent
    if (path / INCIDENT).is_file():
        return path
    for parent in (path, path / INCIDENTS):
        inside = listed_incidents(parent) if parent.is_dir() else []
        if len(inside) == 1:
            return inside[0]
        if inside:
            raise CastironError(
                _none(f"{len(inside)} incidents are in this folder.", path, f"Choose one: {_some(inside)}.")
            )
    if not path.exists():
        siblings = {p.name: str(p) for p in listed_incidents(path.parent)} if path.parent.is_dir() else {}
        close = [siblings[name] for name in near(path.name, siblings)] or list(siblings.values())[-3:]
        raise CastironError(_none("There is no such folder.", path, did_you_mean(close) or None))
    raise CastironError(_none(f"'{INCIDENT}' is missing.", path))


def _some(paths: list[Path]) -> str:
    shown = ", ".join(str(p) for p in paths[:5])
    return f"{shown} and {len(paths) - 5} more" if len(paths) > 5 else shown


def _none(message: str, path: Path, remedy: str | None = None) -> Finding:
    return finding(
        "N512", message, place=Place(file=str(path)), expected="an incident's folder", remedy=remedy
    )


def _damaged(
    path: Path, reason: str, expected: str | None = None, received: str | None = None
) -> CastironError:
    return RunError(
        finding(
            "N513",
            f"A file of the incident cannot be used: {reason}.",
            place=Place(file=str(path)),
            expected=expected,
            received=received,
        )
    )


def _text(folder: Path, name: str) -> bytes:
    path = folder / name
    try:
        if not path.is_file():
            raise _damaged(path, "it is missing")
        if not path.resolve().is_relative_to(folder.resolve()):
            raise _damaged(path, "it is a link that leads out of the folder")
        if path.stat().st_size > _MOST_TEXT:
            raise _damaged(
                path, "it is too large", f"{_MOST_TEXT:,} bytes at most", f"{path.stat().st_size:,}"
            )
        return path.read_bytes()
    except OSError as e:
        raise _damaged(path, (e.strerror or str(e)).lower()) from None


def _json(folder: Path, name: str) -> Any:
    try:
        return json.loads(_text(folder, name))
    except (ValueError, RecursionError) as e:
        raise _damaged(folder / name, f"it is not JSON ({e})") from None
