"""Tensors to bytes and back, without pickle: safetensors, and JSON for the tree that they hang in.

`pack` takes any tree of a batch (mappings, sequences, dataclasses, packed sequences, NumPy arrays, numbers,
text). Every value comes back bit for bit, NaN payloads too. Classes do not: a mapping comes back as a dict,
a dataclass as a namespace, a named tuple as another one of the same fields, because to make an object of a
class that a file names is to run code that it chose.
"""

from __future__ import annotations

import base64
import dataclasses
import math
from collections import namedtuple
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

Structure = dict[str, Any]
"""JSON-ready: what stands in a place of the tree; tensors by name."""
_RAW = {"complex128": torch.complex128, "complex32": torch.complex32}
"""Formats that safetensors has not got: stored as bytes."""
_SPARSE = {torch.sparse_coo: "sparse_coo", torch.sparse_csr: "sparse_csr"}


class DamagedTensors(ValueError):
    """Bytes that are no safetensors, or a structure that they do not fit."""


def pack(tree: Any) -> tuple[bytes, Structure]:
    """A tree as safetensors and the JSON of its structure.

    Tensors that are the same object stay so, and a mapping's keys name its tensors in the file. What is no
    data (a generator, an object of some class) is left out, and comes back as `LeftOut`.
    """
    packer = _Packer()
    structure = packer(tree, "")
    return save(packer.tensors), structure


def unpack(
    data: bytes | Path, structure: Structure, device: torch.device | str = "cpu", of: str = "cpu"
) -> Any:
    """What `pack` was given.

    Args:
        data: the safetensors, or their file.
        structure: as `pack` returned it.
        device: where tensors go that were on the device of the type `of`; all others stay on the CPU (lengths
            of sequences, which torch wants there).
        of: type of the device that the step ran on.

    Raises:
        DamagedTensors: the two do not fit together.
    """
    tensors = read_tensors(data)
    try:
        return _Unpacker(tensors, torch.device(device), of)(structure)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError) as e:
        if isinstance(e, DamagedTensors):
            raise
        raise DamagedTensors(f"the structure does not fit: {type(e).__name__}: {e}") from e


def random_state() -> dict[str, Tensor]:
    """The state of torch's generators, uint8: `cpu`, and `cuda:0` … where CUDA is in use."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state |= {f"cuda:{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return state


def set_random_state(state: Mapping[str, Tensor]) -> list[str]:
    """Put torch's generators into this state. → names of devices that are not here."""
    left = []
    for name, value in state.items():
        if name == "cpu":
            torch.set_rng_state(value)
        elif torch.cuda.is_available() and int(name.partition(":")[2]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(value, name)
        else:
            left.append(name)
    return left


@dataclasses.dataclass(frozen=True, slots=True)
class LeftOut:
    """Stands where something stood that is no data."""

    type: str
    """Its class."""


# --- to bytes ------------------------------------------------------------------------------------------


class _Packer:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._known: dict[int, str] = {}
        self._kept: list[Any] = []  # an id is only an identity while the object lives

    def __call__(self, leaf: Any, path: str) -> Structure:
        if leaf is None or isinstance(leaf, str | bool):
            return {"value": leaf}
        if isinstance(leaf, Tensor):
            return self._tensor(leaf, path)
        if isinstance(leaf, np.ndarray | np.generic):
            return self._array(leaf, path)
        if isinstance(leaf, int):
            return {"value": int(leaf)}
        if isinstance(leaf, float):
            return {"value": leaf} if math.isfinite(leaf) else {"float": repr(leaf)}
        if isinstance(leaf, complex):
            return {"complex": [repr(leaf.real), repr(leaf.imag)]}
        if isinstance(leaf, bytes | bytearray):
            return {"bytes": base64.b64encode(leaf).decode()}
        if isinstance(leaf, PackedSequence):
            return {"packed": [self(part, f"{path}.{n}") for n, part in zip(leaf._fields, leaf, strict=True)]}
        if isinstance(leaf, Mapping):
            items = [[self(k, ""), self(v, f"{path}.{k}")] for k, v in leaf.items()]
            return {"dict": items}
        if isinstance(leaf, list | tuple | set | frozenset):
            return self._sequence(leaf, path)
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            fields = {
                f.name: self(getattr(leaf, f.name), f"{path}.{f.name}") for f in dataclasses.fields(leaf)
            }
            return {"fields": fields, "of": _name_of(leaf)}
        return {"left_out": _name_of(leaf)}

    def _sequence(self, leaf: Any, path: str) -> Structure:
        items = [self(item, f"{path}.{i}") for i, item in enumerate(leaf)]
        if names := getattr(leaf, "_fields", None):
            return {"named": items, "names": list(names), "of": type(leaf).__name__}
        kind = next(k for k in (list, tuple, set, frozenset) if isinstance(leaf, k))
        return {kind.__name__: items}

    def _tensor(self, tensor: Tensor, path: str) -> Structure:
        if hasattr(tensor, "to_local"):
            # To gather it all processes would have to take part, and only one holds this step.
            return {"left_out": "a tensor spread over several processes"}
        if tensor.layout in _SPARSE:
            return self._sparse(tensor, path)
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            return {"left_out": f"a {tensor.layout} tensor of {tensor.dtype}"}
        entry: Structure = {"tensor": self._store(tensor, path), "device": tensor.device.type}
        if tensor.requires_grad:
            entry["requires_grad"] = True
        if (raw := _format(tensor)) in _RAW:
            entry |= {"raw": raw, "shape": list(tensor.shape)}
        return entry

    def _store(self, tensor: Tensor, path: str) -> str:
        if name := self._known.get(id(tensor)):
            return name
        name = path.strip(".") or "value"
        while name in self.tensors:
            name += "'"
        self._known[id(tensor)] = name
        self._kept.append(tensor)
        self.tensors[name] = _plain(tensor)
        return name

    def _sparse(self, tensor: Tensor, path: str) -> Structure:
        kind = _SPARSE[tensor.layout]
        tensor = tensor.detach()
        if kind == "sparse_coo":
            coalesced = tensor.is_coalesced()
            parts = {"indices": tensor._indices(), "values": tensor._values()}
        else:
            coalesced = True
            names = ("crow_indices", "col_indices", "values")
            parts = {n: getattr(tensor, n)() for n in names}
        packed = {n: self._tensor(t, f"{path}.{n}") for n, t in parts.items()}
        return {kind: packed, "shape": list(tensor.shape), "coalesced": coalesced}

    def _array(self, leaf: Any, path: str) -> Structure:
        array = np.asarray(leaf)
        kind = "scalar" if isinstance(leaf, np.generic) else "array"
        if array.dtype.kind in "US":
            return {kind: self(array.tolist(), path), "dtype": array.dtype.str}
        if array.dtype.kind not in "biufc":
            return {"left_out": f"numpy {array.dtype}"}
        # A copy is native, contiguous and writeable, as torch wants it.
        native = np.array(array, dtype=array.dtype.newbyteorder("="), copy=True, order="C")
        try:
            tensor = torch.from_numpy(native.reshape(array.shape))
        except TypeError:
            return {"left_out": f"numpy {array.dtype}"}
        return {kind: self._tensor(tensor, path), "dtype": native.dtype.str}


def _plain(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous, in memory of its own, in a format that safetensors has."""
    plain = tensor.detach().resolve_conj().resolve_neg().to("cpu", copy=True)
    plain = plain.contiguous() if plain.layout is torch.strided else plain.to_dense()
    if _format(plain) in _RAW:
        return plain.reshape(-1).view(torch.uint8).clone()
    return plain.clone() if plain.untyped_storage().nbytes() != plain.nbytes else plain


def _format(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _name_of(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


# --- from bytes ----------------------------------------------------------------------------------------


def read_tensors(data: bytes | Path) -> dict[str, Tensor]:
    """The tensors of safetensors, by name, on the CPU.

    Raises:
        DamagedTensors: it is none.
    """
    try:
        return load_file(data) if isinstance(data, Path) else load(data)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as e:
        raise DamagedTensors(f"it is not safetensors: {e}") from e


class _Unpacker:
    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device, of: str) -> None:
        self._tensors, self._device, self._of = tensors, device, of
        self._made: dict[tuple[str, str], Tensor] = {}

    def __call__(self, entry: Structure) -> Any:
        kind = next(iter(entry))
        make: Callable[[Structure], Any] | None = getattr(self, f"_{kind}", None)
        if make is None:
            raise DamagedTensors(f"the structure does not fit: '{kind}' is unknown")
        return make(entry)

    def _value(self, entry: Structure) -> Any:
        return entry["value"]

    def _float(self, entry: Structure) -> float:
        return float(entry["float"])

    def _complex(self, entry: Structure) -> complex:
        real, imag = entry["complex"]
        return complex(float(real), float(imag))

    def _bytes(self, entry: Structure) -> bytes:
        return base64.b64decode(entry["bytes"])

    def _left_out(self, entry: Structure) -> LeftOut:
        return LeftOut(str(entry["left_out"]))

    def _dict(self, entry: Structure) -> dict[Any, Any]:
        return {self(k): self(v) for k, v in entry["dict"]}

    def _list(self, entry: Structure) -> list[Any]:
        return [self(e) for e in entry["list"]]

    def _tuple(self, entry: Structure) -> tuple[Any, ...]:
        return tuple(self(e) for e in entry["tuple"])

    def _set(self, entry: Structure) -> set[Any]:
        return {self(e) for e in entry["set"]}

    def _frozenset(self, entry: Structure) -> frozenset[Any]:
        return frozenset(self(e) for e in entry["frozenset"])

    def _named(self, entry: Structure) -> Any:
        return namedtuple(entry["of"], entry["names"])(*(self(e) for e in entry["named"]))

    def _fields(self, entry: Structure) -> SimpleNamespace:
        return SimpleNamespace(**{name: self(e) for name, e in entry["fields"].items()})

    def _packed(self, entry: Structure) -> PackedSequence:
        return PackedSequence(*(self(e) for e in entry["packed"]))

    def _tensor(self, entry: Structure) -> Tensor:
        name, was = entry["tensor"], entry["device"]
        key = (name, was)
        if key not in self._made:
            tensor = self._tensors[name]
            if "raw" in entry:
                tensor = tensor.view(_RAW[entry["raw"]]).reshape(entry["shape"])
            if was == self._of:
                tensor = tensor.to(self._device)
            self._made[key] = tensor.requires_grad_() if entry.get("requires_grad") else tensor
        return self._made[key]

    def _sparse_coo(self, entry: Structure) -> Tensor:
        parts = {n: self(e) for n, e in entry["sparse_coo"].items()}
        return torch.sparse_coo_tensor(
            parts["indices"],
            parts["values"],
            entry["shape"],
            is_coalesced=entry["coalesced"],
            check_invariants=True,
        )

    def _sparse_csr(self, entry: Structure) -> Tensor:
        parts = {n: self(e) for n, e in entry["sparse_csr"].items()}
        return torch.sparse_csr_tensor(
            parts["crow_indices"],
            parts["col_indices"],
            parts["values"],
            entry["shape"],
            check_invariants=True,
        )

    def _array(self, entry: Structure) -> np.ndarray[Any, Any]:
        inner = self(entry["array"])
        if isinstance(inner, Tensor):
            return np.asarray(inner.cpu().numpy())
        return np.asarray(inner, dtype=entry["dtype"])

    def _scalar(self, entry: Structure) -> Any:
        inner = self(entry["scalar"])
        array = inner.cpu().numpy() if isinstance(inner, Tensor) else np.asarray(inner, dtype=entry["dtype"])
        return array[()]
