"""scikit-learn's tables as real files have them: gaps in four spellings, numbers as text, groups in words.

The tables are packaged (SOURCE.md says whence); nothing is downloaded, and scikit-learn is not needed.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from castiron.data.files import written_atomically

Table = Literal["breast-cancer", "diabetes"]

GAPS = ("", "?", " ?", "N/A")
"""How a missing cell is written."""

GROUPED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "breast-cancer": ("mean texture", ("smooth", "fair", "rough", "coarse")),
    "diabetes": ("sex", ("A", "B")),
}
"""Table → a column of numbers that is written in words, from the smallest quantile to the largest."""

_SHARES = (6, 2, 2)
_SPLITS = ("train", "validation", "test")


def write(table: Table, folder: Path, *, seed: int, gaps: float = 0.05) -> dict[str, Path]:
    """Write a table's three splits as CSV; → split, file.

    Args:
        seed: of rows and gaps. Of the same seed are the same bytes.
        gaps: share of cells, the target's left out, that are missing.
    """
    header, rows = _read(table)
    random = np.random.default_rng(seed)
    order = random.permutation(len(rows))
    column, words = GROUPED[table]
    _write_in_words(header.index(column), words, rows)
    for row in rows:
        for i in np.flatnonzero(random.random(len(row) - 1) < gaps):
            row[i] = GAPS[random.integers(len(GAPS))]
    ends = np.cumsum(_SHARES) * len(rows) // sum(_SHARES)
    files = {}
    folder.mkdir(parents=True, exist_ok=True)
    for split, part in zip(_SPLITS, np.split(order, ends[:-1]), strict=True):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows[i] for i in part)
        files[split] = folder / f"{table}-{split}.csv"
        with written_atomically(files[split]) as file:
            file.write(text.getvalue().encode())
    return files


def _write_in_words(column: int, words: tuple[str, ...], rows: list[list[str]]) -> None:
    values = np.array([float(row[column]) for row in rows])
    if len(words) == 2:
        groups = (values > values.min()).astype(int)
    else:
        edges = np.quantile(values, np.arange(1, len(words)) / len(words))
        groups = np.searchsorted(edges, values)
    for row, group in zip(rows, groups, strict=True):
        row[column] = words[group]


def _read(table: Table) -> tuple[list[str], list[list[str]]]:
    path = Path(__file__).with_name(f"{table.replace('-', '_')}.csv.gz")
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return header, rows
