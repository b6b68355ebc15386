"""What a table teaches before training: the scale of its numbers, and the words of its categories."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from castiron.data import Dataset
from castiron.data.files import written_atomically

MISSING, UNSEEN = 0, 1
"""Category numbers of an empty cell, and of a word that the training rows have too seldom or never."""


class Scale(BaseModel):
    """How a column of numbers becomes a feature: (x - mean) / std, after log(1 + x) where asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    std: float
    median: float
    """What stands in for a missing cell, in the column's own units."""
    gaps: bool
    """Whether training rows have gaps; a second feature then says where."""
    log: bool = False

    @classmethod
    def of(cls, values: np.ndarray, *, log: bool = False) -> Scale:
        """Of float32 [rows], NaN where missing; taken in float64."""
        known = values[~np.isnan(values)].astype(np.float64)
        if not known.size:
            return cls(mean=0.0, std=1.0, median=0.0, gaps=True, log=log)
        median = float(np.median(known))
        filled = _logged(np.where(np.isnan(values), median, values.astype(np.float64)), log)
        std = float(filled.std())
        return cls(
            mean=float(filled.mean()), std=std or 1.0, median=median, gaps=known.size < values.size, log=log
        )

    def apply(self, values: np.ndarray) -> list[np.ndarray]:
        """float32 [rows] → one or two features float32 [rows]; computed in float64."""
        missing = np.isnan(values)
        filled = _logged(np.where(missing, self.median, values.astype(np.float64)), self.log)
        features = [((filled - self.mean) / self.std).astype(np.float32)]
        return [*features, missing.astype(np.float32)] if self.gaps else features

    def undo(self, values: Any) -> Any:
        """Back to the column's units; for a target, which has no log."""
        return values * self.std + self.mean


class TableEncoder(BaseModel):
    """Rows of a table as features [rows, N] and categories [rows, K]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    numbers: dict[str, Scale]
    words: dict[str, dict[str, int]]
    """Categorical column → word → number, from 2."""
    missing: tuple[str, ...]
    """Words that mean a missing cell."""

    @classmethod
    def fit(
        cls, data: Dataset, numbers: Sequence[str], categories: Sequence[str], *, logs: Sequence[str],
        missing: Sequence[str], at_least: int,
    ) -> TableEncoder:  # fmt: skip
        """Learn from training rows; words of fewer than `at_least` rows count as unseen."""
        words = {}
        for name in categories:
            counts = Counter(word.strip() for word in data.texts(name))
            known = sorted(w for w, n in counts.items() if n >= at_least and w and w not in missing)
            words[name] = {word: number for number, word in enumerate(known, 2)}
        return cls(
            numbers={n: Scale.of(data.array(n), log=n in logs) for n in numbers},
            words=words,
            missing=tuple(missing),
        )

    @property
    def features(self) -> int:
        """N: numbers of a row, those that say where a gap was among them."""
        return sum(1 + scale.gaps for scale in self.numbers.values())

    @property
    def vocabularies(self) -> list[int]:
        """Size of each categorical column's vocabulary."""
        return [len(known) + 2 for known in self.words.values()]

    def encode(self, data: Dataset) -> dict[str, np.ndarray]:
        """→ `numbers` float32 [rows, N] and `categories` int64 [rows, K]."""
        rows = len(data)
        numbers = [f for name, scale in self.numbers.items() for f in scale.apply(data.array(name))]
        categories = [self._category(name, data.texts(name)) for name in self.words]
        return {
            "numbers": np.stack(numbers, axis=1) if numbers else np.zeros((rows, 0), np.float32),
            "categories": np.stack(categories, axis=1) if categories else np.zeros((rows, 0), np.int64),
        }

    def _category(self, name: str, texts: list[str]) -> np.ndarray:
        known = {**self.words[name], **dict.fromkeys(("", *self.missing), MISSING)}
        return np.array([known.get(text.strip(), UNSEEN) for text in texts], np.int64)

    def save(self, path: Path) -> None:
        with written_atomically(path) as file:
            file.write(json.dumps(self.model_dump(mode="json"), ensure_ascii=False, indent=1).encode())

    @classmethod
    def load(cls, path: Path) -> TableEncoder:
        return cls.model_validate_json(path.read_bytes())


def _logged(values: np.ndarray, log: bool) -> np.ndarray:
    """log(1 + |x|) with the sign of x."""
    return np.sign(values) * np.log1p(np.abs(values)) if log else values
