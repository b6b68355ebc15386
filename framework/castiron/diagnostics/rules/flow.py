"""F3xx: the flow of dtypes through operations."""

from __future__ import annotations

from castiron.diagnostics.rules.rule import Rule

RULES: tuple[Rule, ...] = ()
