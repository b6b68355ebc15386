"""What castiron says: the catalogue of codes, findings, errors, and how they are shown."""

from castiron.diagnostics.catalogue import FAMILIES, RULES, finding, rule
from castiron.diagnostics.errors import (
    AuditError,
    CastironError,
    ConfigError,
    DataError,
    HardwareError,
    ManifestError,
    NumericIncident,
    PlanError,
    RunError,
)
from castiron.diagnostics.finding import Finding, Place, Severity
from castiron.diagnostics.rules.rule import Rule

__all__ = [
    "FAMILIES",
    "RULES",
    "AuditError",
    "CastironError",
    "ConfigError",
    "DataError",
    "Finding",
    "HardwareError",
    "ManifestError",
    "NumericIncident",
    "Place",
    "PlanError",
    "Rule",
    "RunError",
    "Severity",
    "finding",
    "rule",
]
