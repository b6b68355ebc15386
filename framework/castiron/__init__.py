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

_HOMES = {
    "castiron.diagnostics": (
        "AuditError", "CastironError", "ConfigError", "DataError", "Finding", "HardwareError",
        "ManifestError", "NumericIncident", "PlanError", "RunError",
    ),
    "castiron.policy": ("Plan", "PrecisionPolicy"),
}  # fmt: skip
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AuditError",
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
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'castiron' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
