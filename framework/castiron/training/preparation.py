"""From a job to batches: data held against the contract, what the recipe learns from it, loaders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from castiron.data import Batches, Dataset, FittedMissing, Ragged, Windows
from castiron.training.backend import Job
from castiron.training.recipe import Recipe
from castiron.training.splits import SPLITS, load_splits

_FITTED = "missing.json"
_DATA = "data"


@dataclass(frozen=True, slots=True)
class Prepared:
    """The data of a job, ready for a model."""

    recipe: Recipe
    datasets: Mapping[str, Dataset]
    """Split → rows with their origins."""
    batches: Mapping[str, Batches]
    """Split → batches; training batches are shuffled."""


def prepare(job: Job, wanted: Sequence[str] = SPLITS) -> Prepared:
    """Load the wanted splits, let the recipe learn from the training rows, encode, and make batches.

    What the recipe learns, and the values that stand in for missing ones, are saved with a new run, and
    loaded again when a run goes on or is used. `data.json` of a new run holds the data reports.

    Raises:
        CastironError: the data breaks its contract, or cannot be encoded.
    """
    recipe = job.recipe(job.config)
    assets = job.run.assets
    known = (job.checkpoint is not None or job.peers.rank > 0) and (assets / _FITTED).exists()
    fitted = FittedMissing.load(assets / _FITTED) if known else None
    datasets = load_splits(job.config, recipe, assets / _DATA, wanted, fitted=fitted)
    if known:
        recipe.load(assets)
    else:
        recipe.learn(datasets["train"])
        assets.mkdir(parents=True, exist_ok=True)
        recipe.save(assets)
        datasets["train"].fitted.save(assets / _FITTED)
        reports = {split: data.report.model_dump(mode="json") for split, data in datasets.items()}
        job.run.write_json("data.json", reports)
    job.reporter.data({split: data.report for split, data in datasets.items()})
    batches = {
        split: make_batches(recipe, recipe.encode(data), training=split == "train")
        for split, data in datasets.items()
    }
    return Prepared(recipe=recipe, datasets=datasets, batches=batches)


def make_batches(
    recipe: Recipe, columns: Mapping[str, np.ndarray | Ragged | Windows], *, training: bool
) -> Batches:
    """Batches of encoded rows, as the config says; `row` is the number of the row in its data set.

    A window's is that of its beginning, of the first column that is of windows.
    """
    config = recipe.run
    numbers = next((c.rows for c in columns.values() if isinstance(c, Windows)), None)
    schema = recipe.schema()
    return Batches(
        columns,
        config.data.batch_size,
        shuffle=training,
        seed=config.seed,
        bucket_by=recipe.bucket_by if config.data.bucket else None,
        row_numbers=numbers,
        allow_float64=frozenset(f.name for f in schema.fields if f.dtype == "float64"),
    )
