"""A recipe that a test writes into a file: one column in, one out, and rows of its choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from castiron.training import load_config
from castiron.training.launch import train

_BEGINNING = '''
import keras
import tensorflow as tf

from castiron.data import Field, Schema
from castiron.training import Recipe


class {name}(Recipe):
    """Learns a function of one number."""

    name = "{low}"
    backends = ("tensorflow",)

    def schema(self):
        return Schema.of(
            Field(name="x", role="feature", dtype="float32"), Field(name="y", role="target", dtype="float32")
        )

    def embedded_data(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        rows = "".join(f"{{i}},{{i}}\\n" for i in {rows})
        for split, text in (("train", rows), ("validation", "4,2\\n"), ("test", "4,2\\n")):
            (folder / f"{{split}}.csv").write_text("x,y\\n" + text)
        return {{split: folder / f"{{split}}.csv" for split in ("train", "validation", "test")}}
'''


def run_written(
    folder: Path, name: str, rows: Sequence[int], rest: str, config: str, *overrides: str
) -> tuple[Any, Any, Any]:
    """Write a recipe and its config, and train it. → the config as loaded, the run, how it ended.

    Args:
        rows: x, and y, of the training's rows.
        rest: the recipe's methods `model`, `inputs` and `loss`, and what else the file holds.
        config: more of the config, as YAML.
    """
    file, yaml = folder / f"{name.lower()}.py", folder / f"{name.lower()}.yaml"
    file.write_text(_BEGINNING.format(name=name, low=name.lower(), rows=tuple(rows)) + rest)
    yaml.write_text(f"recipe: {file}:{name}\nbackend: tensorflow\n{config}")
    loaded = load_config(str(yaml), list(overrides))
    return loaded, *train(loaded, runs=folder / "runs", name="run")
