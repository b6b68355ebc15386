"""What is found in a file, whatever its kind: plain data, and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from castiron.diagnostics import Finding
from castiron.training.manifest import Manifest, TensorRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A checkpoint, looked into. Nothing of it was executed."""

    path: Path
    kind: str
    """What the file is, in words."""
    size: int
    tensors: Mapping[str, TensorRecord] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else it says of itself: step, versions, names of its parts."""
    manifest: Manifest | None = None
    seal: str = "none"
    """intact; none (castiron did not write it); or what is wrong."""
    findings: tuple[Finding, ...] = ()

    @property
    def elements(self) -> int:
        return sum(_elements(record) for record in self.tensors.values())

    def formats(self) -> dict[str, int]:
        """Format → elements, most first."""
        counts: Counter[str] = Counter()
        for record in self.tensors.values():
            counts[record.dtype] += _elements(record)
        return dict(counts.most_common())

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "file": str(self.path),
            "kind": self.kind,
            "bytes": self.size,
            "seal": self.seal,
            "facts": dict(self.facts),
            "formats": self.formats(),
            "tensors": {n: {"dtype": r.dtype, "shape": list(r.shape)} for n, r in self.tensors.items()},
            "manifest": self.manifest.model_dump(mode="json") if self.manifest else None,
            "findings": [f.as_dict() for f in self.findings],
        }

    def lines(self) -> dict[str, str]:
        """Name → what there is to say, for a terminal."""
        said = {"file": str(self.path), "kind": self.kind, "bytes": f"{self.size:,}", "seal": self.seal}
        said |= {str(k): _short(v) for k, v in self.facts.items()}
        if (manifest := self.manifest) is not None:
            said |= {
                "policy": manifest.policy,
                "made by": f"castiron {manifest.castiron}, {manifest.backend} "
                f"{manifest.versions.get(manifest.backend, '')}".rstrip(),
                "recipe": manifest.recipe or "(none)",
                "model": manifest.model,
                "device": manifest.device,
            }
            if manifest.step is not None:
                said["step"] = f"{manifest.step:,}"
            if manifest.optimizers:
                said["optimizers"] = ", ".join(o.type for o in manifest.optimizers)
            if manifest.scaler is not None:
                said["scaler"] = _short(manifest.scaler)
            if manifest.assets:
                said["assets"] = ", ".join(manifest.assets)
            if manifest.weights:
                said["weights"] = manifest.weights
        formats = ", ".join(f"{n:,} in {name}" for name, n in self.formats().items())
        said["elements"] = f"{self.elements:,} ({formats})" if formats else "none found"
        return {k: v for k, v in said.items() if v}


def _elements(record: TensorRecord) -> int:
    n = 1
    for extent in record.shape:
        n *= extent
    return n


def _short(value: Any) -> str:
    text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
    return text if len(text) <= 200 else text[:197] + "…"
