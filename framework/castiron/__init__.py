"""castiron: training with an enforced precision policy, in PyTorch and in TensorFlow.

Nothing here imports a framework: names are resolved on first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from castiron.diagnostics import (
        AuditError,
        CastironError,
        ConfigError,
        DataError,
        Finding,
        HardwareError,
        ManifestError,
        NumericIncident,
        PlanError,
        RunError,
    )
    from castiron.policy import Plan, PrecisionPolicy
    from castiron.training.audit import AuditReport
    from castiron.training.auditing import assert_precision, audit

_HOMES = {
    "castiron.diagnostics": (
        "AuditError", "CastironError", "ConfigError", "DataError", "Finding", "HardwareError",
        "ManifestError", "NumericIncident", "PlanError", "RunError",
    ),
    "castiron.policy": ("Plan", "PrecisionPolicy"),
    "castiron.training.audit": ("AuditReport",),
    "castiron.training.auditing": ("assert_precision", "audit"),
}  # fmt: skip
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AuditError",
    "AuditReport",
    "CastironError",
    "ConfigError",
    "DataError",
    "Finding",
    "HardwareError",
    "ManifestError",
    "NumericIncident",
    "Plan",
    "PlanError",
    "PrecisionPolicy",
    "RunError",
    "__version__",
    "assert_precision",
    "audit",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'castiron' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
