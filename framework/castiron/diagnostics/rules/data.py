"""D1xx: data and the contract."""

from __future__ import annotations

from castiron.diagnostics.rules.loading import RULES as LOADING
from castiron.diagnostics.rules.rule import Rule

RULES: tuple[Rule, ...] = (*LOADING,)
