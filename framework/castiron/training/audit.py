"""What an audit found, as plain data: each operation, the report, and the certificate `audit.json`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from castiron.diagnostics import AuditError, Finding, Place, RunError, finding
from castiron.training.incident import Source

Phase = Literal["forward", "loss", "backward", "optimizer"]
PHASES: tuple[Phase, ...] = ("forward", "loss", "backward", "optimizer")
FILE = "audit.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFormat:
    """A tensor that went into or came out of an operation."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpRecord:
    """One operation that ran."""

    op: str
    """Its name: `addmm`, `softmax`."""
    phase: Phase
    module: str | None
    """Path of the innermost layer that it ran in; None outside of the model."""
    source: Source | None
    """The line of the user's code; for backward that of the forward operation."""
    inputs: tuple[TensorFormat, ...]
    outputs: tuple[TensorFormat, ...]
    format: str | None
    """What it computed in: the widest floating-point format among its operands; None for integers."""
    flops: int = 0
    """Floating-point operations: of products 2·m·n·k and the like, of others one per element."""
    bytes: int = 0
    """Read and written."""


class Share(BaseModel):
    """How much ran in one format."""

    model_config = ConfigDict(extra="forbid")

    operations: int = 0
    flops: int = 0
    bytes: int = 0

    def add(self, record: OpRecord) -> None:
        self.operations += 1
        self.flops += record.flops
        self.bytes += record.bytes


class AuditReport(BaseModel):
    """What was declared against what runs."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    version: Literal[1] = 1
    policy: str
    """The policy's short string."""
    policy_hash: str
    device: str
    level: Literal["strict", "warn", "off"]
    traced: Literal["fake", "graph", "real", "none"]
    """On fake tensors, as TensorFlow's graphs, by one real step on a small batch, or not at all."""
    confirmed: bool = False
    """Whether a real step, on a few rows, was looked at as well."""
    operations: int = 0
    """Operations that were looked at."""
    layers: int = 0
    """Layers of the plan."""
    formats: dict[str, dict[str, Share]] = {}
    """Phase → format → how much ran in it. Integer operations are under `integer`."""
    findings: tuple[Finding, ...] = ()
    waived: tuple[Finding, ...] = ()
    """Found, and not reported because the config or a comment says so."""
    steps: tuple[int, ...] = ()
    """Steps of the training that were looked at as well."""
    seconds: float = 0.0

    # --- verdict -----------------------------------------------------------------------------------

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity == "error")

    @property
    def ok(self) -> bool:
        """Whether nothing of severity error was found."""
        return not self.errors

    def check(self) -> AuditReport:
        """This report, where it is in order.

        Raises:
            AuditError: it is not; with the findings of severity error.
        """
        if self.errors:
            raise AuditError(self.errors)
        return self

    def share(self, measure: Literal["operations", "flops", "bytes"] = "flops") -> dict[str, float]:
        """Format → its share of all, largest first; integer operations are left out."""
        totals: dict[str, int] = {}
        for formats in self.formats.values():
            for name, share in formats.items():
                if name != "integer":
                    totals[name] = totals.get(name, 0) + getattr(share, measure)
        whole = sum(totals.values())
        ordered = sorted(totals.items(), key=lambda item: -item[1])
        return {name: n / whole for name, n in ordered if n} if whole else {}

    # --- forms -------------------------------------------------------------------------------------

    def as_text(self, *, phases: bool = False, all: bool = False) -> str:
        """For people: formats by share of FLOPs, then the findings by code and layer.

        Args:
            phases: formats of each phase by itself.
            all: also what was waived, and notes.
        """
        from castiron.training.audit_text import text

        return text(self, phases=phases, all=all)

    def to_json(self) -> str:
        """The certificate. The findings are those of the catalogue, as everywhere."""
        record = self.model_dump(mode="json", exclude={"findings", "waived"})
        record["ok"] = self.ok
        record["share_of_flops"] = {k: round(v, 6) for k, v in self.share("flops").items()}
        record["share_of_operations"] = {k: round(v, 6) for k, v in self.share("operations").items()}
        record["findings"] = [f.as_dict() for f in self.findings]
        record["waived"] = [f.as_dict() for f in self.waived]
        return json.dumps(record, indent=2, ensure_ascii=False, default=str) + "\n"

    @classmethod
    def from_json(cls, text: str, *, file: str | Path = FILE) -> AuditReport:
        """A certificate, read again. The verdict is taken from the findings, not from what it says of itself.

        Raises:
            RunError: it is no certificate of castiron's.
        """
        try:
            record = json.loads(text)
            for key in ("ok", "share_of_flops", "share_of_operations"):
                record.pop(key, None)
            for key in ("findings", "waived"):
                record[key] = tuple(_finding(f) for f in record.get(key, ()))
            return cls.model_validate(record)
        except (ValueError, TypeError, AttributeError, KeyError, ValidationError) as e:
            problem = str(e).splitlines()[0]
            raise RunError(
                finding(
                    "F329",
                    f"The certificate of the audit cannot be read: {problem}",
                    place=Place(file=str(file)),
                    expected="an audit.json as castiron writes it",
                    remedy="Audit again: castiron audit CONFIG.",
                )
            ) from e

    def _repr_html_(self) -> str:
        from castiron.diagnostics.html import report_fragment

        return report_fragment(f"Audit {self.headline()}", self.findings, self.share("flops"))

    def headline(self) -> str:
        """The verdict in a line."""
        counts = {s: sum(f.severity == s for f in self.findings) for s in ("error", "warning", "info")}
        found = ", ".join(f"{n} {s}{'s' if n > 1 and s != 'info' else ''}" for s, n in counts.items() if n)
        share = ", ".join(f"{v:.1%} {k}" for k, v in self.share("flops").items())
        return (
            f"{'passed' if self.ok else 'failed'}: {self.operations:,} operations of {self.layers} layers on "
            f"{self.device}; {found or 'nothing found'}{f'; FLOPs {share}' if share else ''}"
        )


def tally(records: Iterable[OpRecord]) -> dict[str, dict[str, Share]]:
    """Phase → format → how much ran in it."""
    found: dict[str, dict[str, Share]] = {}
    for record in records:
        of_phase = found.setdefault(record.phase, {})
        of_phase.setdefault(record.format or "integer", Share()).add(record)
    return {phase: found[phase] for phase in PHASES if phase in found}


def merge(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The same thing at the same line once, with how often it was met; errors first."""
    from dataclasses import replace

    from castiron.diagnostics.render import by_severity

    merged: dict[Any, Finding] = {}
    for f in findings:
        # what is said of one line counts once, in whichever layer of a stack it was met
        place = f.place
        where = (place.file, place.line, place.op) if place.file else (place.module, place.op, place.field)
        key = (f.code, f.severity, where, f.received if not place.file else None)
        first = merged.get(key)
        merged[key] = f if first is None else replace(first, count=first.count + f.count)
    return tuple(by_severity(merged.values()))


def key(f: Finding) -> tuple[Any, ...]:
    """By which a finding is known again: its code and place."""
    return f.code, f.place.file, f.place.line, f.place.op, f.place.module if f.place.file is None else None


def _finding(record: Mapping[str, Any]) -> Finding:
    given = dict(record)
    given["place"] = Place(**given.get("place", {}))
    return Finding(**given)
