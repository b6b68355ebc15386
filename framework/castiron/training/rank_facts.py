"""What must be the same on all ranks of a training: the config, the code, library versions, the data."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from castiron.training.environment import versions
from castiron.training.registry import recipe_file

if TYPE_CHECKING:
    from castiron.data import Batches, Dataset
    from castiron.training.config import RunConfig
    from castiron.training.recipe import Recipe

_MAY_DIFFER = frozenset({"data.train", "data.validation", "data.test", "trainer.threads"})
"""Keys of a config: where the same files stand, and what changes no result."""


def config_facts(config: RunConfig) -> dict[str, str]:
    """Dotted key → value, of everything that a config says."""
    return {key: value for key, value in _flat(config.resolved()) if key not in _MAY_DIFFER}


def code_facts(recipe: type[Recipe]) -> dict[str, str]:
    """Versions of what is installed, and a digest of the recipe's file."""
    facts = versions()
    facts["python"] = platform.python_version()
    file = recipe_file(recipe)
    if file is not None and file.is_file():
        facts[f"code of {recipe.name}"] = f"sha256 {hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
    return facts


def data_facts(datasets: Mapping[str, Dataset], batches: Mapping[str, Batches]) -> dict[str, str]:
    """Digests of each split's files, and of the rows as they were encoded."""
    facts = {}
    for split, dataset in datasets.items():
        for number, file in enumerate(dataset.report.files, 1):
            facts[f"data.{split}, file {number}"] = f"blake3 {file.blake3[:16]}"
    for split, encoded in batches.items():
        facts[f"encoded rows of data.{split}"] = f"{encoded.rows:,} rows, digest {encoded.digest[:16]}"
    return facts


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [p for k, v in value.items() for p in _flat(v, f"{path}.{k}" if path else str(k))]
    return [(path, str(value))]
