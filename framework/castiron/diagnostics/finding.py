"""A finding: one diagnostic, with its place, what was expected and received, and a remedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a finding is: a position in a file, a key of a config, a layer of a model, or several of these.

    `line` and `column` count from 1. `field` names a column of data, `key` a dotted config key.
    """

    file: str | None = None
    line: int | None = None
    column: int | None = None
    key: str | None = None
    field: str | None = None
    module: str | None = None
    op: str | None = None
    phase: str | None = None

    def __str__(self) -> str:
        parts = []
        if self.file:
            position = ":".join(str(n) for n in (self.line, self.column) if n is not None)
            parts.append(f"{self.file}:{position}" if position else self.file)
        if self.key:
            parts.append(f"key '{self.key}'")
        if self.field:
            parts.append(f"field '{self.field}'")
        if self.module is not None:
            parts.append(f"layer '{self.module}'" if self.module else "the model itself")
        if self.op:
            parts.append(f"{self.op} ({self.phase})" if self.phase else self.op)
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One diagnostic. Make it with `finding(...)`, which takes severity and remedy from the catalogue.

    `message` says what is wrong in one sentence, without the place; `expected` and `received` are short
    noun phrases. `count` is how often the same thing was met where only one is described.
    """

    code: str
    message: str
    severity: Severity
    place: Place = field(default_factory=Place)
    expected: str | None = None
    received: str | None = None
    remedy: str = ""
    count: int = 1
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping; places without a value are left out."""
        record = asdict(self)
        record["place"] = {k: v for k, v in record["place"].items() if v is not None}
        record["evidence"] = dict(self.evidence)
        return record

    def sentence(self) -> str:
        """`message Expected … Received … at PLACE.`; without code and remedy."""
        parts = [_stop(self.message)] if self.message else []
        if self.expected:
            parts.append(f"Expected {self.expected}.")
        place = str(self.place)
        if self.received:
            parts.append(f"Received {self.received}{f' at {place}' if place else ''}.")
        elif place:
            parts.append(f"At {place}.")
        if self.count > 1:
            parts.append(f"({self.count:,} times)")
        return _joined(parts)

    def __str__(self) -> str:
        """The whole finding on one line, code first, remedy last."""
        return _joined([part for part in (self.code, self.sentence(), self.remedy) if part])


def _stop(text: str) -> str:
    return text if text.endswith((".", "!", "?", ":", "\n")) else text + "."


def _joined(parts: list[str]) -> str:
    """Sentences in a row; what comes after a table begins its own line."""
    return "".join(p if p.endswith("\n") else f"{p} " for p in parts).removesuffix(" ")
