"""The generated reviews: bytes, dirt, what can be known of them, and that they need the words' order."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from castiron.data import TextEncoder
from castiron_recipes.lstm_sentiment import review_words
from castiron_recipes.lstm_sentiment.review_grammar import Draws, review
from castiron_recipes.lstm_sentiment.reviews import COLUMNS, ReviewFiles, generate


def digests(files: ReviewFiles) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files.splits.values()]


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def usable(path: Path) -> tuple[list[str], np.ndarray]:
    rows = [row for row in rows_of(path) if row["text"] and row["label"] != "?"]
    return [row["text"] for row in rows], np.array([row["label"] == "positive" for row in rows])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ReviewFiles:
    return generate(tmp_path_factory.mktemp("reviews"), seed=1)


# --- the files ---------------------------------------------------------------------------------------


def test_sizes_columns_and_what_is_known(files: ReviewFiles) -> None:
    assert files.rows == {"train": 16_000, "validation": 2_000, "test": 2_000}
    for split, path in files.splits.items():
        assert path.name == f"{split}.csv"
        rows = rows_of(path)
        assert len(rows) == files.rows[split]
        assert tuple(rows[0]) == COLUMNS == ("id", "text", "label", "rating", "source", "date")
    assert files.bayes_accuracy == 0.95
    assert all(abs(ceiling - 0.95) < 0.02 for ceiling in files.ceiling.values())
    assert str(files) == (
        "Generated reviews: train 16,000, validation 2,000, test 2,000. Bayes accuracy 0.950 "
        f"(on this test file {files.ceiling['test']:.4f})."
    )
    record = json.loads((files.train.parent / "reviews.json").read_text(encoding="utf-8"))
    assert record["bayes_accuracy"] == 0.95
    assert record["seed"] == 1
    assert record["splits"]["test"]["dirt"] == files.dirt["test"]


def test_the_dirt_is_counted(files: ReviewFiles) -> None:
    for split, path in files.splits.items():
        rows, dirt = rows_of(path), files.dirt[split]
        assert dirt == {
            "unknown_label": sum(row["label"] == "?" for row in rows),
            "empty_text": sum(row["text"] == "" for row in rows),
            "rating_not_available": sum(row["rating"] == "N/A" for row in rows),
            "rating_blank": sum(row["rating"] == "" for row in rows),
            "line_break": sum("\n" in row["text"] for row in rows),
            "quotation": sum('"' in row["text"] for row in rows),
            "html_break": sum("<br />" in row["text"] for row in rows),
        }
        assert {row["label"] for row in rows} == {"negative", "positive", "?"}
    assert all(files.dirt["train"].values())


def test_ids_and_ratings_tempt_to_lossy_casts(files: ReviewFiles) -> None:
    rows = [row for path in files.splits.values() for row in rows_of(path)]
    ids = [int(row["id"]) for row in rows]
    assert len(set(ids)) == len(ids) == 20_000
    assert min(ids) == 2**53 + 1
    assert len({float(i) for i in ids}) < len(ids)
    ratings = [float(row["rating"]) for row in rows if row["rating"] not in ("N/A", "")]
    assert 1 <= min(ratings) < max(ratings) <= 5
    assert np.mean([float(np.float32(r)) != r for r in ratings]) > 0.5


def test_texts_are_as_real_ones(files: ReviewFiles) -> None:
    texts, labels = usable(files.train)
    encoder = TextEncoder().fit(texts)
    encoded = encoder.encode_all(texts)
    assert 500 < len(encoder) < 2000
    assert 15 < encoded.lengths.mean() < 25
    assert encoded.lengths.max() < 80
    assert abs(labels.mean() - 0.5) < 0.02
    assert len(set(texts)) > 0.98 * len(texts)
    assert any("é" in text for text in texts)
    assert encoder.coverage(usable(files.test)[0]).unknown_rate < 0.001


# --- reproducible, whole, quick ----------------------------------------------------------------------


def test_bytes_depend_on_seed_rows_and_noise_alone(tmp_path: Path) -> None:
    first = generate(tmp_path / "a", seed=3, rows=1000)
    assert digests(first) == digests(generate(tmp_path / "b", seed=3, rows=1000))
    folder = str(tmp_path / "c")
    program = f"from castiron_recipes.lstm_sentiment.reviews import generate as g; g({folder!r}, 3, 1000)"
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": "77"}, check=True)
    assert [
        hashlib.sha256((tmp_path / "c" / f"{split}.csv").read_bytes()).hexdigest() for split in first.splits
    ] == digests(first)
    for other in ({"seed": 4}, {"rows": 1010}, {"noise": 0.1}):
        assert digests(generate(tmp_path / "d", **{"seed": 3, "rows": 1000, **other})) != digests(first)


REVIEWS_17 = [
    (
        "No animals appear in this one. I relished the choreography.",
        1,
        2,
    ),
    (
        "It stands next to the bicycle pump in our kitchen. The service was a bore, but "
        "in the end I think the case was absolutely lively.",
        1,
        3,
    ),
]


def test_the_reviews_of_a_seed_are_these_for_ever() -> None:
    draws = Draws(17)
    assert [review(draws) for _ in range(2)] == REVIEWS_17


def test_whole_files_stay_and_others_are_made_anew(tmp_path: Path) -> None:
    first = generate(tmp_path, seed=3, rows=1000)
    before = digests(first)
    made = {path: path.stat().st_mtime_ns for path in first.splits.values()}
    assert generate(tmp_path, seed=3, rows=1000) == first
    assert {path: path.stat().st_mtime_ns for path in first.splits.values()} == made
    for damage in (
        lambda: first.test.write_bytes(b"id,text\n"),
        first.train.unlink,
        lambda: (tmp_path / "reviews.json").write_text("{"),
    ):
        damage()
        assert digests(generate(tmp_path, seed=3, rows=1000)) == before
    assert generate(tmp_path, seed=4, rows=1000).ceiling != first.ceiling
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "reviews.json",
        "test.csv",
        "train.csv",
        "validation.csv",
    ]


def test_generating_is_quick(tmp_path: Path) -> None:
    begin = time.process_time()
    generate(tmp_path)
    assert time.process_time() - begin < 2


@pytest.mark.parametrize("settings", [{"rows": 99}, {"noise": 0.5}, {"noise": -0.1}, {"seed": -1}])
def test_settings_out_of_range(tmp_path: Path, settings: dict[str, float]) -> None:
    with pytest.raises(
        ValueError, match=r"Expected seed >= 0, rows >= 100, 0 <= noise < 0.5. Received seed="
    ):
        generate(tmp_path, **settings)  # type: ignore[arg-type]


# --- what the grammar promises -----------------------------------------------------------------------


def test_a_text_has_one_meaning() -> None:
    draws = Draws(5)
    meanings: dict[str, set[int]] = {}
    for _ in range(20_000):
        made = review(draws)
        meanings.setdefault(made.text, set()).add(made.meaning)
    assert all(len(found) == 1 for found in meanings.values())


def test_no_word_is_good_and_bad() -> None:
    for words in (review_words.ADJECTIVES, review_words.NOUNS, review_words.VERBS):
        negative, positive = words
        assert not set(negative) & set(positive)
        assert len(set(negative)) == len(negative)
        assert len(set(positive)) == len(positive)


def test_the_label_is_the_meaning_but_for_the_noise(tmp_path: Path) -> None:
    clean = generate(tmp_path / "clean", seed=2, rows=2000, noise=0)
    noisy = generate(tmp_path / "noisy", seed=2, rows=2000, noise=0.2)
    assert clean.bayes_accuracy == 1
    assert set(clean.ceiling.values()) == {1.0}
    assert noisy.bayes_accuracy == 0.8
    (texts, meanings), (same_texts, labels) = usable(clean.train), usable(noisy.train)
    assert texts == same_texts
    assert (labels == meanings).mean() == pytest.approx(noisy.ceiling["train"], abs=1e-12)


def bag_of_words(files: ReviewFiles) -> float:
    """Test accuracy of the best linear classifier (least squares, closed form) on the counts of words."""
    (train, labels), (test, answers) = usable(files.train), usable(files.test)
    encoder = TextEncoder().fit(train)

    def counts(texts: list[str]) -> np.ndarray:
        encoded = encoder.encode_all(texts)
        rows = np.repeat(np.arange(len(encoded)), encoded.lengths)
        bag = np.zeros((len(encoded), len(encoder)), np.float32)
        np.add.at(bag, (rows, encoded.values), 1)
        bag[:, 0] = 1  # the constant, in the place of padding
        return bag

    bag = counts(train)
    normal = bag.T @ bag + np.eye(len(encoder), dtype=np.float32)
    weights = np.linalg.solve(normal, bag.T @ np.where(labels, 1, -1).astype(np.float32))
    return float(((counts(test) @ weights > 0) == answers).mean())


def test_a_bag_of_words_cannot_tell(files: ReviewFiles) -> None:
    """It sees which words are good, so it beats a coin; a reader who minds their order scores 0.95."""
    assert 0.55 < bag_of_words(files) < files.bayes_accuracy - 0.25
