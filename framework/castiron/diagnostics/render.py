"""Findings for people (rich terminal, plain lines) and for programs (JSON)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from castiron.diagnostics.finding import SEVERITIES, Finding

if TYPE_CHECKING:
    from rich.console import Console

_COLOUR = {"error": "red", "warning": "yellow", "info": "cyan"}


def as_json(findings: Iterable[Finding]) -> str:
    return json.dumps([f.as_dict() for f in findings], indent=2, ensure_ascii=False, default=str)


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, in the order they were found within a severity."""
    return sorted(findings, key=lambda f: SEVERITIES.index(f.severity))


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """Two lines each: severity, code and what is wrong where; then the remedy."""
    from rich.text import Text

    for f in by_severity(findings):
        colour = _COLOUR[f.severity]
        head = Text.assemble((f"{f.severity} {f.code}", f"bold {colour}"), "  ", f.sentence())
        console.print(head, soft_wrap=True, highlight=False)
        if f.remedy:
            console.print(Text.assemble("  → ", (f.remedy, "green")), soft_wrap=True, highlight=False)
