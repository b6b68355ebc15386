"""The data of a run, held against the recipe's contract: from files, held out, or embedded in the recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from castiron.data import DataReport, Dataset, FittedMissing, ReadOptions, check, load
from castiron.diagnostics import CastironError, ConfigError, Finding, Place, Severity, finding
from castiron.training.config import RunConfig
from castiron.training.hold_out import hold_out
from castiron.training.recipe import Recipe

SPLITS = ("train", "validation", "test")


def no_training_data(severity: Severity = "error") -> Finding:
    """The config is made for files, and names none."""
    return finding(
        "X804",
        "This config is made for data of yours, and names none.",
        place=Place(key="data.embedded"),
        expected="a path as data.train",
        received="null",
        remedy="Name the files: data.train=FILE data.validation=FILE data.test=FILE.",
        severity=severity,
    )


@contextmanager
def about_key(key: str) -> Iterator[None]:
    """Errors within that have no place (a file is not there) get the key of the config that says so."""
    try:
        yield
    except CastironError as e:
        e.findings = tuple(keyed(e.findings, key))
        raise


def keyed(findings: Iterable[Finding], key: str) -> list[Finding]:
    """Findings, with this key where they have no place."""
    return [f if str(f.place) else dataclasses.replace(f, place=Place(key=key)) for f in findings]


@dataclass(frozen=True, slots=True)
class Sources:
    """The files of each split, and how they are read."""

    files: Mapping[str, Sequence[str | Path]]
    """In the order of `SPLITS`."""
    columns: Mapping[str, Any]
    options: ReadOptions


def sources(config: RunConfig, recipe: Recipe, folder: Path) -> Sources:
    """Where the data of a run is; embedded data is written below `folder` where the config names none.

    Raises:
        ConfigError: there is no training data.
    """
    data = config.data
    if data.train is None:
        if not data.embedded:
            raise ConfigError(no_training_data())
        embedded = recipe.embedded_data(folder)
        # Embedded columns have the names of the fields.
        return Sources({s: [embedded[s]] for s in SPLITS if s in embedded}, {}, ReadOptions())
    named = {split: getattr(data, split) for split in SPLITS}
    files = {s: [paths] if isinstance(paths, str) else paths for s, paths in named.items() if paths}
    return Sources(files, data.columns, data.read)


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
        fitted: values that stand in for missing ones, as saved with the run; None: fitted on training data.

    Raises:
        DataError: the files break the contract.
        ConfigError: there is no training data, or too much of it is held out.
    """
    source, schema = sources(config, recipe, folder), recipe.schema()
    options = source.options
    if options.digest is None:
        options = options.model_copy(update={"digest": True})

    def read(split: str) -> Dataset:
        with about_key(f"data.{split}"):
            return load(
                source.files[split],
                schema,
                columns=source.columns,
                casts=config.precision.casts,
                options=options,
                fitted=fitted,
                split=split,
            )

    by = config.data.hold_out
    held = [s for s in ("validation", "test") if config.data.train is not None and getattr(by, s)]
    found: dict[str, Dataset] = {}
    if "train" in wanted or fitted is None or set(held) & set(wanted):
        train = read("train")
        fitted = fitted if fitted is not None else train.fitted
        found = hold_out(train, by) if held else {"train": train}
    for split in ("validation", "test"):
        if split in wanted and split in source.files:
            found[split] = read(split)
    return {split: found[split] for split in SPLITS if split in found and split in wanted}


def check_splits(config: RunConfig, recipe: Recipe, folder: Path) -> dict[str, DataReport]:
    """The report of every split, also of those that break the contract; no values are kept.

    Rows that are held out are reported with the training data they are in.

    Raises:
        DataError: a file is missing or cannot be read at all.
        ConfigError: there is no training data.
    """
    source, schema = sources(config, recipe, folder), recipe.schema()
    reports = {}
    for split, files in source.files.items():
        with about_key(f"data.{split}"):
            reports[split] = check(
                files,
                schema,
                columns=source.columns,
                casts=config.precision.casts,
                options=source.options,
                split=split,
            )
    return reports
