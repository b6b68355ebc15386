"""Files of torch and Lightning: the pickle is read with nothing behind its names, tensors not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from castiron.training.checkpoint_file import damaged
from castiron.training.inspection.pickles import (
    Made,
    Named,
    Unreadable,
    globals_of,
    is_safe,
    pickles_in,
    plain_mapping,
    read,
)
from castiron.training.inspection.unread import reading
from castiron.training.manifest import TensorRecord

_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16",
    "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}  # fmt: skip
_DEEPEST = 12


def look_into(path: Path) -> tuple[str, dict[str, TensorRecord], dict[str, Any], list[str]]:
    """Kind, tensors, facts, and the names of functions beyond those that build tensors.

    Raises:
        ManifestError: it cannot be read (C601).
    """
    with reading(path):
        with open(path, "rb") as file:
            archive = file.read(4) == b"PK\x03\x04"
        pickles = list(pickles_in(path))
        named = [n for data in pickles for n in globals_of(data)]
    code = list(dict.fromkeys(n for n in named if not is_safe(n)))
    if not archive:
        # Its tensors come after several pickles, of which only the first is looked at.
        return "torch file of the old form, or a bare pickle", {}, {"names": len(named)}, code
    if not pickles:
        raise damaged(path, "it is an archive without a pickle")
    try:
        content = read(pickles[0])
    except Unreadable as e:
        if code:
            return "torch archive", {}, {}, code
        raise damaged(path, str(e).rstrip(".")) from None
    whole = plain_mapping(content)
    kind = "torch archive"
    facts: dict[str, Any] = {}
    if "pytorch-lightning_version" in whole:
        kind = "Lightning checkpoint"
        facts["lightning"] = whole["pytorch-lightning_version"]
    for key in ("epoch", "global_step"):
        if isinstance(whole.get(key), int):
            facts[key] = whole[key]
    if whole and not all(isinstance(v, Made) for v in whole.values()):
        facts["parts"] = ", ".join(str(k)[:40] for k in list(whole)[:20])
    tensors = dict(_tensors(content))
    if kind == "torch archive" and tensors and all("." in n or n for n in tensors) and "parts" not in facts:
        kind = "torch state dict"
    return kind, tensors, facts, code


def _tensors(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, TensorRecord]]:
    found = _tensor(value)
    if found is not None:
        yield path or "(the tensor)", found
        return
    if depth > _DEEPEST:
        return
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, Made) and value.items:
        items = value.items.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, inner in items:
        name = str(key)[:200]
        yield from _tensors(inner, f"{path}.{name}" if path else name, depth + 1)


def _tensor(value: Any) -> TensorRecord | None:
    if not isinstance(value, Made):
        return None
    last = value.name.rpartition(".")[2]
    arguments = value.arguments
    if last in ("_rebuild_parameter", "_rebuild_parameter_with_state") and arguments:
        return _tensor(arguments[0])
    if last not in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3") or len(arguments) < 3:
        return None
    storage, shape = arguments[0], arguments[2]
    dtype = "unknown"
    if last == "_rebuild_tensor_v3" and isinstance(arguments[-1], Named):
        dtype = arguments[-1].name.rpartition(".")[2]
    elif isinstance(storage, Made) and len(storage.arguments) > 1 and isinstance(storage.arguments[1], Named):
        dtype = _STORAGES.get(storage.arguments[1].name.rpartition(".")[2], "unknown")
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        return None
    return TensorRecord(dtype=dtype, shape=shape)
