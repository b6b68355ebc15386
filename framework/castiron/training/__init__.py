"""Run: configs, recipes, the backend's protocol, and the run directory."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from castiron.training.backend import Backend, Job, Outcome, load_backend
    from castiron.training.config import RunConfig
    from castiron.training.config_file import LoadedConfig, configure, load_config
    from castiron.training.launch import resume, train, train_recipe
    from castiron.training.recipe import Batch, Recipe
    from castiron.training.registry import find_recipe, registered
    from castiron.training.run_directory import RunDirectory

# Names are resolved on first use, so that listing recipes need not import NumPy and pyarrow.
_HOMES = {
    "backend": ("Backend", "Job", "Outcome", "load_backend"),
    "config": ("RunConfig",),
    "config_file": ("LoadedConfig", "configure", "load_config"),
    "launch": ("resume", "train", "train_recipe"),
    "recipe": ("Batch", "Recipe"),
    "registry": ("find_recipe", "registered"),
    "run_directory": ("RunDirectory",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Backend",
    "Batch",
    "Job",
    "LoadedConfig",
    "Outcome",
    "Recipe",
    "RunConfig",
    "RunDirectory",
    "configure",
    "find_recipe",
    "load_backend",
    "load_config",
    "registered",
    "resume",
    "train",
    "train_recipe",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'castiron.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f"castiron.training.{home}"), name)
