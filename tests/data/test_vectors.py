"""Pretrained vectors: what is read, and what is refused."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from castiron.data import vectors
from castiron.data.vectors import load_vectors
from castiron.diagnostics import DataError

GLOVE = "the 0.1 -2.5 3e-3\nfilm 1 2 3\n, 0.25 0.5 16777217\ncafé 7 8 9\n"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "vectors.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_vectors_of_the_vocabulary(tmp_path: Path) -> None:
    matrix, found = load_vectors(written(tmp_path, GLOVE), ["<pad token>", ",", "café", "movie", "the"])
    assert matrix.dtype == np.float32
    assert matrix.shape == (5, 3)
    assert found.tolist() == [False, True, True, False, True]
    assert matrix[[0, 3]].tolist() == [[0, 0, 0], [0, 0, 0]]
    # Rounded to the nearest float32, each once.
    assert matrix[1].tolist() == [0.25, 0.5, 16777216.0]
    assert matrix[4].tolist() == [np.float32(0.1), -2.5, np.float32(3e-3)]


@pytest.mark.parametrize("compressed", [False, True])
def test_header_line_ends_and_compression(tmp_path: Path, compressed: bool) -> None:
    data = ("4 3\n" + GLOVE).replace("\n", " \r\n").encode()
    path = tmp_path / ("v.txt.gz" if compressed else "v.txt")
    path.write_bytes(gzip.compress(data) if compressed else data)
    matrix, found = load_vectors(path, ["film"])
    assert matrix.tolist() == [[1, 2, 3]]
    assert found.all()


def test_of_a_word_that_occurs_twice_the_first_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "a 1 2\nb 3 4\na 5 6\nb 7 8\na 9 9\n")
    for lines in (1, 2, 20_000):
        monkeypatch.setattr(vectors, "_LINES", lines)
        assert load_vectors(path, ["a", "b"]).matrix.tolist() == [[1, 2], [3, 4]]


def test_a_word_may_hold_blanks(tmp_path: Path) -> None:
    path = written(tmp_path, "a 1 2\n. . 3 4\nat name@domain.com 5 6\n")
    matrix, found = load_vectors(path, [". .", "a", "at name@domain.com"])
    assert matrix.tolist() == [[3, 4], [1, 2], [5, 6]]
    assert found.all()


def test_numbers_are_words_too(tmp_path: Path) -> None:
    assert load_vectors(written(tmp_path, "10 1 2\n1987 3 4\n"), ["1987"]).matrix.tolist() == [[3, 4]]


@pytest.mark.parametrize(
    ("text", "place", "sentence"),
    [
        ("a 1 2\nb 3\n", ":2", "A line has another width. Expected a word and 2 numbers. Received 1 cells"),
        ("a 1 2\nb 3 4 5\n", ":2", "Received 3 cells after the word"),
        ("a 1 2\n\nb 3 4\n", ":2", "Received 0 cells after the word"),
        ("a 1 2\nb 3 n/a\n", ":2:3", "no finite number that float32 holds. Expected float32. Received 'n/a'"),
        ("2 2\na 1 2\nb 3 nan\n", ":3:3", "Received 'nan'"),
        ("a inf 2\n", ":1:2", "Received 'inf'"),
        ("a 1 1e39\n", ":1:3", "Received '1e39'"),
        ("a 1 1e-60\n", ":1:3", "Received '1e-60'"),
        ("a 1 1_000\n", ":1:3", "Received '1_000'"),
        ("a 1  2\n", ":1:3", "Received ''"),
        ("b 0 0 0\na x 1 1\nb y 1 1\na z 1 1\n", ":2:2", "Received 'x'"),
        ("alone\n", ":1", "A line holds no vector. Expected a word and its numbers. Received 'alone'"),
        ("", "", "The file holds no vector. Expected a word and its numbers. Received an empty file"),
        ("3 2\n", "", "The file holds no vector."),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path: Path, text: str, place: str, sentence: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(DataError) as caught:
        load_vectors(path, ["a", "b"])
    assert str(caught.value).startswith("D158 ")
    assert sentence in str(caught.value)
    assert f" at {path}{place}. " in str(caught.value)


def test_a_line_that_nobody_asked_for_is_checked_for_its_width_alone(tmp_path: Path) -> None:
    assert load_vectors(written(tmp_path, "a 1 2\nb x y\n"), ["a"]).found.tolist() == [True]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"D158 The vectors cannot be read. .* Received No such file or directory at"
    ):
        load_vectors(tmp_path / "none.txt", ["a"])
    path = tmp_path / "cut.txt.gz"
    path.write_bytes(gzip.compress(GLOVE.encode() * 1000)[:-40])
    with pytest.raises(DataError, match=r"The file is cut off or broken. Expected a whole gzip file."):
        load_vectors(path, ["the"])
    path.write_bytes(GLOVE.encode())
    with pytest.raises(DataError, match=r"The file is cut off or broken."):
        load_vectors(path, ["the"])


@pytest.mark.data
def test_glove(tmp_path: Path) -> None:
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    path = Path(os.environ.get("CASTIRON_DATA", beside)) / "glove50_subset" / "glove.6B.50d-relativized.txt"
    if not path.is_file():
        pytest.skip(f"no real data at {path}")
    matrix, found = load_vectors(path, ["<pad token>", "<unknown token>", "the", "movie", "``", "10"])
    assert matrix.shape == (6, 50)
    assert found.tolist() == [False, False, True, False, True, True]  # a news vocabulary: no "movie"
    assert np.abs(matrix).max() < 4.38
    the = next(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("the "))
    assert matrix[2].tolist() == [np.float32(cell) for cell in the.split(" ")[1:]]
