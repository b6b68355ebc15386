"""The data that the recipe brings along: reviews made by a grammar, as CSV with the dirt of real files.

Nothing is downloaded and nothing is shipped. What a perfect reader would score is known: the text of a review
determines its meaning, and the label is the meaning, turned with probability `noise`; so no classifier does
better than 1 - noise on average (the Bayes accuracy).
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from castiron.data.files import sha256_of, written_atomically
from castiron_recipes.lstm_sentiment.review_grammar import Draws, Review, review

COLUMNS = ("id", "text", "label", "rating", "source", "date")
LABELS = ("negative", "positive")
SPLITS = ("train", "validation", "test")
SHARES = (8, 1, 1)
"""Of ten rows, those of each split."""

_VERSION = 1  # of the generator: files of another are made anew
_FIRST_ID = 2**53 + 1  # ids that no float64 holds
_SOURCES = ("web", "app", "letter", "shop")


@dataclass(frozen=True, slots=True)
class ReviewFiles:
    """The files that `generate` wrote, and what is known about them."""

    train: Path
    validation: Path
    test: Path
    bayes_accuracy: float
    """What the best classifier there can be scores on average: 1 - noise."""
    ceiling: dict[str, float]
    """Per split: what that classifier scores on the usable rows of exactly this file."""
    rows: dict[str, int]
    """Per split: rows of the file."""
    dirt: dict[str, dict[str, int]]
    """Per split: rows whose label is '?', whose text is empty, whose rating is 'N/A' or blank, and texts with
    a line break, a quotation mark, or an HTML break."""

    @property
    def splits(self) -> dict[str, Path]:
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def __str__(self) -> str:
        counts = ", ".join(f"{split} {rows:,}" for split, rows in self.rows.items())
        return (
            f"Generated reviews: {counts}. Bayes accuracy {self.bayes_accuracy:.3f} "
            f"(on this test file {self.ceiling['test']:.4f})."
        )


def generate(folder: str | Path, seed: int = 0, rows: int = 20_000, *, noise: float = 0.05) -> ReviewFiles:
    """Write train.csv, validation.csv, test.csv (8 : 1 : 1 of `rows`) and reviews.json into `folder`.

    The bytes depend on seed, rows and noise alone. Files that are there already and are whole stay.
    Columns: id (int64 beyond 2**53), text (UTF-8, quoted where it has commas, quotes or line breaks), label
    ('negative', 'positive'; '?' in some rows), rating (1 to 5, decimal text that float32 must round; 'N/A'
    and blank cells; tells no more of the label than the text does), source, date.
    """
    if rows < 100 or not 0 <= noise < 0.5 or seed < 0:
        raise ValueError(
            "Expected seed >= 0, rows >= 100, 0 <= noise < 0.5. "
            f"Received seed={seed}, rows={rows}, noise={noise}."
        )
    folder = Path(folder)
    settings = {"version": _VERSION, "seed": seed, "rows": rows, "noise": noise}
    record = _existing(folder, settings)
    if record is None:
        record = {**settings, "bayes_accuracy": 1 - noise, "splits": _write(folder, seed, rows, noise)}
        with written_atomically(folder / "reviews.json") as file:
            file.write((json.dumps(record, indent=2) + "\n").encode())
    splits = record["splits"]
    train, validation, test = (folder / f"{split}.csv" for split in SPLITS)
    return ReviewFiles(
        train,
        validation,
        test,
        bayes_accuracy=record["bayes_accuracy"],
        ceiling={split: splits[split]["ceiling"] for split in SPLITS},
        rows={split: splits[split]["rows"] for split in SPLITS},
        dirt={split: splits[split]["dirt"] for split in SPLITS},
    )


def _existing(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The record of files of these settings, if they are there, unchanged."""
    try:
        record: dict[str, Any] = json.loads((folder / "reviews.json").read_bytes())
        if {key: record[key] for key in settings} != settings:
            return None
        if any(sha256_of(folder / f"{s}.csv") != record["splits"][s]["sha256"] for s in SPLITS):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record


def _write(folder: Path, seed: int, rows: int, noise: float) -> dict[str, Any]:
    draws = Draws(seed)
    number = 0
    described = {}
    for split, share in zip(SPLITS, SHARES, strict=True):
        count = rows * share // sum(SHARES) if split != "train" else rows - 2 * (rows // sum(SHARES))
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(COLUMNS)
        tally = _Tally()
        for _ in range(count):
            writer.writerow(_row(draws, number, noise, tally))
            number += 1
        path = folder / f"{split}.csv"
        with written_atomically(path) as file:
            file.write(buffer.getvalue().encode())
        described[split] = {
            "rows": count,
            "sha256": sha256_of(path),
            "ceiling": tally.right / tally.usable,
            "dirt": asdict(tally.dirt),
        }
    return described


@dataclass(slots=True)
class _Dirt:
    unknown_label: int = 0
    empty_text: int = 0
    rating_not_available: int = 0
    rating_blank: int = 0
    line_break: int = 0
    quotation: int = 0
    html_break: int = 0


class _Tally:
    def __init__(self) -> None:
        self.usable = self.right = 0
        self.dirt = _Dirt()


def _row(draws: Draws, number: int, noise: float, tally: _Tally) -> list[str]:
    made = review(draws)
    label = made.meaning ^ draws.chance(noise)
    shown, text = LABELS[label], made.text
    kind = draws.below(1000)
    if kind < 3:
        shown = "?"
        tally.dirt.unknown_label += 1
    elif kind < 5:
        text = ""
        tally.dirt.empty_text += 1
    else:
        tally.usable += 1
        tally.right += label == made.meaning
        if kind < 45:
            text = text.replace(". ", ".\n")
        elif kind < 55:
            text = text.replace(". ", ".<br />")
    tally.dirt.line_break += "\n" in text
    tally.dirt.html_break += "<br />" in text
    tally.dirt.quotation += '"' in text
    return [
        str(_FIRST_ID + number),
        text,
        shown,
        _rating(draws, made, tally),
        draws.pick(_SOURCES),
        f"20{20 + draws.below(6)}-{1 + draws.below(12):02}-{1 + draws.below(28):02}",
    ]


def _rating(draws: Draws, made: Review, tally: _Tally) -> str:
    """The mean of seven part-ratings 1 to 5: higher where the meaning is good, whatever the label says."""
    kind = draws.below(1000)
    marks, digits, total = _MARKS[made.meaning][made.strength - 1], draws.raw(), 0
    for _ in range(7):
        digits, digit = divmod(digits, 5)
        total += marks[digit]
    if kind < 20:
        tally.dirt.rating_not_available += 1
        return "N/A"
    if kind < 35:
        tally.dirt.rating_blank += 1
        return ""
    return repr(total / 7)


_MARKS = (
    ((1, 1, 2, 3, 4), (1, 1, 2, 3, 3), (1, 1, 1, 2, 3)),
    ((2, 3, 4, 5, 5), (3, 3, 4, 5, 5), (3, 4, 5, 5, 5)),
)
"""Part-ratings by meaning and strength, each of five as likely as the others."""
