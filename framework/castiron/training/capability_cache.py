"""What was found out about a device, kept as JSON in the user's cache directory. Both wings can use it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from castiron.policy import DeviceCapability


def cache_directory() -> Path:
    """Where castiron keeps what it found out: $CASTIRON_CACHE, else the user's cache directory."""
    if chosen := os.environ.get("CASTIRON_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "castiron"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "castiron" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "castiron"


def read(identity: dict[str, Any]) -> DeviceCapability | None:
    """The cached result; None where there is none, or it is damaged or of another machine."""
    try:
        record = json.loads(_path(identity).read_text(encoding="utf-8"))
        if record["identity"] != identity:
            return None
        return DeviceCapability.model_validate(record["capability"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None


def write(identity: dict[str, Any], capability: DeviceCapability) -> None:
    """Write under another name and rename, so that a reader never sees half a file. A cache that cannot be
    written is no error: the next run probes again."""
    text = json.dumps({"identity": identity, "capability": capability.model_dump(mode="json")}, indent=1)
    path, temporary = _path(identity), None
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
        temporary = None
    if temporary is not None:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _path(identity: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return cache_directory() / f"capability-{identity['device']}-{digest}.json"
