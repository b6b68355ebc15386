"""The PyTorch wing's door to Lightning: Trainer, precision plugin, and what trains a recipe."""

from castiron.lightning.precision import PrecisionPlugin
from castiron.lightning.trainer import Trainer

__all__ = ["PrecisionPlugin", "Trainer"]
