"""The PyTorch wing's door to Lightning: Trainer, precision plugin, and what trains a recipe."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from castiron.lightning.fsdp import FSDPPrecisionPlugin
    from castiron.lightning.guard import NumericGuard
    from castiron.lightning.health import NumericHealth
    from castiron.lightning.logger import RunLogger
    from castiron.lightning.precision import PrecisionPlugin
    from castiron.lightning.replaying import replay
    from castiron.lightning.trainer import Trainer

# Resolved on first use: what a device can run is asked without loading Lightning.
_HOME = {
    "FSDPPrecisionPlugin": "castiron.lightning.fsdp",
    "NumericGuard": "castiron.lightning.guard",
    "NumericHealth": "castiron.lightning.health",
    "PrecisionPlugin": "castiron.lightning.precision",
    "RunLogger": "castiron.lightning.logger",
    "Trainer": "castiron.lightning.trainer",
    "replay": "castiron.lightning.replaying",
}

__all__ = [
    "FSDPPrecisionPlugin",
    "NumericGuard",
    "NumericHealth",
    "PrecisionPlugin",
    "RunLogger",
    "Trainer",
    "replay",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'castiron.lightning' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
