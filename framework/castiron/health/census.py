"""The dtype census: which formats a model really stores, per layer and in all; and which it computes in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from castiron.formats import FORMATS
from castiron.health import tags
from castiron.policy.modules import LayerInfo, TensorInfo
from castiron.policy.plan import Plan


@dataclass(frozen=True, slots=True)
class Count:
    """Tensors of one format: how many, their elements, their bytes."""

    tensors: int = 0
    elements: int = 0
    bytes: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.tensors + other.tensors, self.elements + other.elements, self.bytes + other.bytes)


@dataclass(frozen=True, slots=True)
class LayerCensus:
    """What one layer holds itself, by format. A tensor tied to another is counted where it is first met."""

    path: str
    type: str
    parameters: Mapping[str, Count] = field(default_factory=dict)
    buffers: Mapping[str, Count] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Census:
    """The formats of a model's tensors; of its layers' arithmetic too where the plan is known."""

    layers: tuple[LayerCensus, ...]
    compute: Mapping[str, int] = field(default_factory=dict)
    """Compute format → number of layers, by plan."""

    def parameters(self) -> dict[str, Count]:
        """Format → parameters of the whole model, largest share first."""
        return _total(layer.parameters for layer in self.layers)

    def buffers(self) -> dict[str, Count]:
        """Format → buffers of the whole model, largest share first."""
        return _total(layer.buffers for layer in self.layers)

    def scalars(self) -> dict[tags.Tag, float]:
        """Bytes per format, and layers per compute format."""
        values = {tags.stored_bytes("parameters", d): float(c.bytes) for d, c in self.parameters().items()}
        values |= {tags.stored_bytes("buffers", d): float(c.bytes) for d, c in self.buffers().items()}
        values |= {tags.computing_layers(name): float(n) for name, n in self.compute.items()}
        return values

    def as_markdown(self, limit: int = 300) -> str:
        """Totals, then a row per layer that holds something; `limit` rows at most, the rest counted."""
        lines = [
            "| format | parameters | bytes | buffers | bytes | layers computing in it |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        parameters, buffers = self.parameters(), self.buffers()
        for name in dict.fromkeys((*parameters, *buffers, *self.compute)):
            p, b = parameters.get(name, Count()), buffers.get(name, Count())
            cells = (p.elements, p.bytes, b.elements, b.bytes, self.compute.get(name, 0))
            lines.append(f"| {name} | " + " | ".join(f"{n:,}" if n else "–" for n in cells) + " |")
        holding = [layer for layer in self.layers if layer.parameters or layer.buffers]
        lines += ["", "Layer by layer:", "", "| layer | type | parameters | buffers |", "|---|---|---|---|"]
        for layer in holding[:limit]:
            stored = " | ".join(_cell(kind) for kind in (layer.parameters, layer.buffers))
            lines.append(f"| `{layer.path or '(model)'}` | {layer.type} | {stored} |")
        if len(holding) > limit:
            lines += ["", f"… and {len(holding) - limit:,} more layers."]
        return "\n".join(lines)


def census(layers: Iterable[LayerInfo], plan: Plan | None = None) -> Census:
    """Count what the layers of a model store; with a plan, also what they compute in."""
    counted = tuple(
        LayerCensus(layer.path, layer.type, _count(layer.parameters), _count(layer.buffers))
        for layer in layers
    )
    compute: dict[str, int] = {}
    for row in plan.layers() if plan else ():
        if row.family not in (None, "embedding"):
            compute[row.compute] = compute.get(row.compute, 0) + 1
    return Census(counted, compute)


def _count(tensors: Iterable[TensorInfo]) -> dict[str, Count]:
    found: dict[str, Count] = {}
    for tensor in tensors:
        if tensor.same_as is None:
            count = Count(1, tensor.size, tensor.size * _itemsize(tensor.dtype))
            found[tensor.dtype] = found.get(tensor.dtype, Count()) + count
    return found


def _total(parts: Iterable[Mapping[str, Count]]) -> dict[str, Count]:
    total: dict[str, Count] = {}
    for part in parts:
        for dtype, count in part.items():
            total[dtype] = total.get(dtype, Count()) + count
    return dict(sorted(total.items(), key=lambda item: -item[1].bytes))


def _itemsize(dtype: str) -> int:
    """Bytes of an element. Formats outside the table (complex64, quint8) end with their number of bits."""
    if known := FORMATS.get(dtype):
        return known.itemsize
    bits = re.search(r"\d+$", dtype)
    return (int(bits.group()) + 7) // 8 if bits else 0


def _cell(stored: Mapping[str, Count]) -> str:
    return ", ".join(f"{c.elements:,} {dtype}" for dtype, c in stored.items()) or "–"
