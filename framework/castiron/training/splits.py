"""The data of a run, held against the recipe's contract: from files, held out, or embedded in the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from castiron.data import Dataset, FittedMissing
from castiron.data.contract import load
from castiron.data.options import ReadOptions
from castiron.diagnostics import ConfigError, Finding, Place, Severity, finding
from castiron.training.config import RunConfig
from castiron.training.hold_out import hold_out
from castiron.training.recipe import Recipe

SPLITS = ("train", "validation", "test")


def no_training_data(severity: Severity = "error") -> Finding:
    """The config is made for files, and names none."""
    return finding(
        "X804",
        "This config is made for data of yours, and names none.",
        place=Place(key="data.train"),
        expected="a path",
        received="null",
        remedy="Name the files: data.train=FILE data.validation=FILE data.test=FILE.",
        severity=severity,
    )


def load_splits(
    config: RunConfig,
    recipe: Recipe,
    folder: Path,
    wanted: Sequence[str] = SPLITS,
    *,
    fitted: FittedMissing | None = None,
) -> dict[str, Dataset]:
    """Each wanted split that the config names, holds out or embeds, in the order of `SPLITS`.

    Args:
        config: names files, columns and what is held out.
        recipe: declares the schema, and writes embedded data where the config names no training data.
        folder: where embedded data is written.
        wanted: splits to load. Training data is read for the others too where these are held out of it, or
            where values are to be fitted on it.
        fitted: values that stand in for missing ones, as saved with the run; None: fitted on the training data.

    Raises:
        DataError: the files break the contract.
        ConfigError: there is no training data, or too much of it is held out.
    """
    data = config.data
    if data.train is None:
        if not data.embedded:
            raise ConfigError(no_training_data())
        embedded = recipe.embedded_data(folder)
        files: dict[str, Sequence[str | Path]] = {split: [path] for split, path in embedded.items()}
        columns, options = {}, ReadOptions()
    else:
        named = {split: getattr(data, split) for split in SPLITS}
        files = {s: [paths] if isinstance(paths, str) else paths for s, paths in named.items() if paths}
        columns, options = dict(data.columns), data.read
    schema = recipe.schema()

    def read(split: str) -> Dataset:
        return load(
            files[split],
            schema,
            columns=columns,
            casts=config.precision.casts,
            options=options,
            fitted=fitted,
            split=split,
        )

    held = [s for s in ("validation", "test") if data.train is not None and getattr(data.hold_out, s)]
    found: dict[str, Dataset] = {}
    if "train" in wanted or fitted is None or set(held) & set(wanted):
        train = read("train")
        fitted = fitted if fitted is not None else train.fitted
        found = hold_out(train, data.hold_out) if held else {"train": train}
    for split in ("validation", "test"):
        if split in wanted and split in files:
            found[split] = read(split)
    return {split: found[split] for split in SPLITS if split in found and split in wanted}
