"""The catalogue: every code that castiron can say, what it means, and what to do."""

from __future__ import annotations

import difflib
from typing import Any

from castiron.diagnostics.finding import Finding, Place, Severity
from castiron.diagnostics.rules import (
    checkpoints,
    config,
    data,
    distributed,
    flow,
    flow_keras,
    hardware,
    health,
    layers,
    numerics,
    scaling,
)
from castiron.diagnostics.rules.rule import Rule

FAMILIES: dict[str, str] = {
    "D1": "data",
    "L2": "layers and plan",
    "F3": "dtype flow",
    "S4": "loss scaling",
    "N5": "numerics at run time",
    "C6": "checkpoints",
    "H7": "hardware",
    "X8": "config",
}

RULES: dict[str, Rule] = {
    rule.code: rule
    for module in (
        data,
        layers,
        flow,
        flow_keras,
        scaling,
        numerics,
        health,
        checkpoints,
        hardware,
        config,
        distributed,
    )
    for rule in module.RULES
}


def rule(code: str) -> Rule:
    """The rule of this code.

    Raises:
        KeyError: no such code; the message lists near misses.
    """
    found = RULES.get(code.upper())
    if found is None:
        near = difflib.get_close_matches(code.upper(), RULES, n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise KeyError(f"Expected a rule code such as D101. Received {code!r}.{hint}")
    return found


def finding(
    code: str,
    message: str,
    *,
    place: Place | None = None,
    expected: str | None = None,
    received: str | None = None,
    remedy: str | None = None,
    severity: Severity | None = None,
    count: int = 1,
    **evidence: Any,
) -> Finding:
    """A finding of a catalogued code; severity and remedy are the rule's unless given."""
    of = rule(code)
    return Finding(
        code=of.code,
        message=message,
        severity=severity or of.severity,
        place=place or Place(),
        expected=expected,
        received=received,
        remedy=of.remedy if remedy is None else remedy,
        count=count,
        evidence=evidence,
    )
