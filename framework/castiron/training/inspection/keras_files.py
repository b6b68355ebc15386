"""Files of Keras: `.keras` archives and HDF5. The config is read as JSON; no layer is made of it."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from castiron.training.checkpoint_file import check_expansion, damaged
from castiron.training.inspection.unread import reading
from castiron.training.manifest import TensorRecord

_MOST_JSON = 64 << 20
_MOST_WEIGHTS = 4 << 30
_WEIGHTS = "model.weights.h5"
_CODE = ("Lambda", "TorchModuleWrapper")
"""Layers that carry code of their own, which `safe_mode=False` runs."""


def look_into(path: Path) -> tuple[str, dict[str, TensorRecord], dict[str, Any], list[str]]:
    """Kind, tensors, facts, and the layers that carry code.

    Raises:
        ManifestError: it cannot be read (C601).
    """
    with reading(path):
        with open(path, "rb") as file:
            if file.read(8) == b"\x89HDF\r\n\x1a\n":
                return "HDF5 weights", *_hdf5(path, str(path)), []
        return _archive(path)


def _archive(path: Path) -> tuple[str, dict[str, TensorRecord], dict[str, Any], list[str]]:
    with zipfile.ZipFile(path) as archive:
        facts: dict[str, Any] = {}
        code: list[str] = []
        names = set(archive.namelist())
        if "metadata.json" in names:
            told = _json(path, archive, "metadata.json")
            if isinstance(told, dict):
                facts |= {k: told[k] for k in ("keras_version", "date_saved") if isinstance(told.get(k), str)}
        if "config.json" in names:
            config = _json(path, archive, "config.json")
            if isinstance(config, dict):
                facts["model"] = str(config.get("class_name"))[:80]
            classes = list(_classes(config))
            facts["dtype policies"] = ", ".join(dict.fromkeys(_policies(config))) or "none said"
            code = [f"{c} layer" for c in dict.fromkeys(classes) if c in _CODE]
        tensors: dict[str, TensorRecord] = {}
        if _WEIGHTS in names:
            info = archive.getinfo(_WEIGHTS)
            check_expansion(path, [info])
            if info.file_size > _MOST_WEIGHTS:
                raise damaged(path, f"its weights would have {info.file_size:,} bytes")
            tensors, more = _hdf5(path, io.BytesIO(archive.read(_WEIGHTS)))
            facts |= more
    return "Keras model", tensors, facts, code


def _json(path: Path, archive: zipfile.ZipFile, name: str) -> Any:
    if archive.getinfo(name).file_size > _MOST_JSON:
        raise damaged(path, f"'{name}' has {archive.getinfo(name).file_size:,} bytes")
    try:
        return json.loads(archive.read(name))
    except (ValueError, RecursionError):
        raise damaged(path, f"'{name}' is not JSON") from None


def _hdf5(path: Path, source: Any) -> tuple[dict[str, TensorRecord], dict[str, Any]]:
    """Names, formats and shapes; where h5py (which Keras brings) is not installed, none."""
    try:
        import h5py  # type: ignore[import-untyped]
    except ImportError:
        return {}, {"weights": "h5py is not installed, so the weights were not looked at"}
    found: dict[str, TensorRecord] = {}

    def see(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            dtype = getattr(item.dtype, "name", str(item.dtype))
            if dtype.startswith("void"):
                dtype = "bfloat16" if item.dtype.itemsize == 2 else dtype
            found[name] = TensorRecord(dtype=str(dtype), shape=tuple(item.shape or ()))

    try:
        with h5py.File(source, "r") as file:
            file.visititems(see)
    except Exception as e:  # what HDF5's C library says of bytes that are none
        raise damaged(
            path, f"its weights are no HDF5 ({str(e).splitlines()[0] if str(e) else type(e).__name__})"
        ) from None
    return found, {}


def _walk(value: Any) -> Iterator[dict[str, Any]]:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield item
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def _classes(config: Any) -> Iterator[str]:
    for item in _walk(config):
        if isinstance(item.get("class_name"), str):
            yield item["class_name"]


def _policies(config: Any) -> Iterator[str]:
    for item in _walk(config):
        if item.get("class_name") in ("DTypePolicy", "Policy") and isinstance(item.get("config"), dict):
            yield str(item["config"].get("name"))[:40]
