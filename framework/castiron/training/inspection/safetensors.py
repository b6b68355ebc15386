"""The header of a safetensors file, read without a tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from castiron.training.checkpoint_file import damaged
from castiron.training.manifest import TensorRecord

_MOST_HEADER = 100_000_000
"""Bytes of a header; the format's own limit."""
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def header(path: Path) -> tuple[dict[str, str], dict[str, TensorRecord]]:
    """Metadata and tensors of a file.

    Raises:
        ManifestError: it is no safetensors, or is cut off (C601).
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(8)
            length = int.from_bytes(head, "little")
            if len(head) < 8 or length > size - 8:
                raise damaged(path, "it ends in the middle")
            if length > _MOST_HEADER:
                raise damaged(path, f"its header has {length:,} bytes")
            data = file.read(length)
    except OSError as e:
        raise damaged(path, (e.strerror or str(e)).lower()) from None
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise damaged(path, "its header is not JSON") from None
    if not isinstance(found, dict):
        raise damaged(path, "its header is no mapping")
    metadata = found.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(not isinstance(v, str) for v in metadata.values()):
        raise damaged(path, "its metadata are not texts")
    tensors = {}
    for name, entry in found.items():
        if not _is_entry(entry):
            raise damaged(path, f"its header does not describe '{str(name)[:80]}'")
        tensors[name] = TensorRecord(
            dtype=_DTYPES.get(entry["dtype"], entry["dtype"]), shape=tuple(entry["shape"])
        )
    return metadata, tensors


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("dtype"), str)
        and isinstance(entry.get("shape"), list)
        and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in entry["shape"])
    )
