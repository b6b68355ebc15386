"""Rows taken out of the training data for validation and test, the same ones in every run."""

from __future__ import annotations

from typing import Any

import numpy as np

from castiron.data import Dataset
from castiron.diagnostics import ConfigError, Place, finding
from castiron.training.config import HoldOut


def hold_out(train: Dataset, by: HoldOut) -> dict[str, Dataset]:
    """Split training data as declared: `train`, and `validation` and `test` where rows are held out.

    Rows are chosen by a permutation of the row numbers under `by.seed` (NumPy's PCG64), test rows first. A
    row with the key of a test row (the schema's; by default its texts) is left out of training and
    validation, and one with that of a validation row is left out of training: what a model has seen is no
    test of it.

    Raises:
        ConfigError: more rows are held out than there are (X803).
    """
    rows = len(train)
    sizes = {split: _rows(getattr(by, split), rows) for split in ("test", "validation")}
    if not any(sizes.values()):
        return {"train": train}
    if sum(sizes.values()) >= rows:
        raise ConfigError(
            finding(
                "X803",
                "No training rows are left.",
                place=Place(key="data.hold_out"),
                expected=f"fewer than {rows:,} rows in all",
                received=f"{sizes['validation']:,} for validation and {sizes['test']:,} for test",
            )
        )
    order = np.random.default_rng(by.seed).permutation(rows)
    keys = _keys(train)
    seen = np.zeros(0, dtype=keys.dtype)
    found: dict[str, Dataset] = {}
    start = 0
    for split in ("test", "validation", "train"):
        end = rows if split == "train" else start + sizes[split]
        chosen = order[start:end]
        start = end
        kept = chosen[~np.isin(keys[chosen], seen)]
        seen = np.concatenate([seen, keys[chosen]])
        if len(chosen):
            # Training rows stay in the order of the files; the loader shuffles them.
            part = train.take(np.sort(kept))
            dropped = len(chosen) - len(kept)
            part.report = train.report.model_copy(
                update={
                    "split": split,
                    "rows": len(kept),
                    "rows_read": len(chosen),
                    "dropped": dropped + (train.report.dropped if split == "train" else 0),
                }
            )
            found[split] = part
    return {split: found[split] for split in ("train", "validation", "test") if split in found}


def _rows(amount: int | float, rows: int) -> int:
    return amount if isinstance(amount, int) else round(amount * rows)


def _keys(data: Dataset) -> np.ndarray:
    """A number per row [rows] int64, equal where the fields of the schema's key are; else all different."""
    schema = data.schema
    names = [f.name for f in schema.by_role("text")] if schema.key is None else schema.key
    columns = [_values(data, name) for name in names if name in data]
    if not columns:
        return np.arange(len(data), dtype=np.int64)
    known: dict[tuple[Any, ...], int] = {}
    rows = zip(*columns, strict=True)
    return np.array([known.setdefault(row, len(known)) for row in rows], dtype=np.int64)


def _values(data: Dataset, name: str) -> list[Any]:
    """A field's values, as what a dictionary can hold."""
    if data.schema[name].is_text:
        return data.texts(name)
    values = data.array(name)
    return values.tolist() if values.ndim == 1 else [row.tobytes() for row in values]
