"""Pretrained word vectors from a text file: a word and its numbers per line (GloVe, word2vec text)."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from castiron.diagnostics import DataError, Place, finding

_LINES = 20_000  # parsed together; bounds the memory


class Vectors(NamedTuple):
    """What a file holds for a vocabulary."""

    matrix: npt.NDArray[np.float32]
    """float32 [V, D]; zeros where the file has no vector."""
    found: npt.NDArray[np.bool_]
    """bool [V]: the tokens that the file has."""


def load_vectors(path: str | Path, vocabulary: Sequence[str]) -> Vectors:
    """The vectors of `vocabulary` (V tokens, in the order of their ids) from a text file, also gzipped.

    The file is read as a stream: memory does not grow with it. D is taken from the first vector; a first
    line of two integers (word2vec's header) is skipped. Of a word that occurs twice the first vector counts;
    a word may hold blanks, as some of GloVe's do. Decimal text is rounded to the nearest float32.

    Raises:
        DataError: D158; a line of another width, or, for words of the vocabulary, a cell that is no number,
            not finite, or not representable in float32 (overflow, or underflow to zero). File, line and
            column are named.
    """
    wanted = {token.encode(): index for index, token in enumerate(vocabulary)}
    matrix: npt.NDArray[np.float32] | None = None
    found = np.zeros(len(vocabulary), bool)
    for width, lines in _batches(path, wanted):
        if matrix is None:
            matrix = np.zeros((len(vocabulary), width), np.float32)
        # A later line of the same word must not win: keep each word's first.
        first = {index: (number, cells) for number, index, cells in reversed(lines) if not found[index]}
        if not first:
            continue
        rows = np.fromiter(first, np.intp, len(first))
        matrix[rows] = _numbers(path, list(first.values()), width)
        found[rows] = True
    if matrix is None:
        raise _refused(path, None, "The file holds no vector.", "a word and its numbers", "an empty file")
    return Vectors(matrix, found)


_Line = tuple[int, int, list[bytes]]  # line number, id, cells


def _batches(path: str | Path, wanted: dict[bytes, int]) -> Iterator[tuple[int, list[_Line]]]:
    """(D, lines of wanted words), many at a time. Every line's width is checked."""
    width = 0
    kept: list[_Line] = []
    with _opened(path) as file:
        try:
            for number, line in enumerate(file, 1):
                line = line.rstrip(b" \r\n")
                if number == 1 and _is_header(line):
                    continue
                gaps = line.count(b" ")
                if not width:
                    if not gaps:
                        raise _refused(
                            path, number, "A line holds no vector.", "a word and its numbers", _shown(line)
                        )
                    width = gaps
                if gaps == width:
                    word, _, rest = line.partition(b" ")
                else:
                    word, rest = _word_with_blanks(path, number, line, width)
                index = wanted.get(word)
                if index is not None:
                    kept.append((number, index, rest.split(b" ")))
                    if len(kept) == _LINES:
                        yield width, kept
                        kept = []
        except (EOFError, gzip.BadGzipFile) as error:
            raise _refused(
                path, None, "The file is cut off or broken.", "a whole gzip file", str(error)
            ) from error
    if width:
        yield width, kept


def _word_with_blanks(path: str | Path, number: int, line: bytes, width: int) -> tuple[bytes, bytes]:
    """The word and the rest of a line with more blanks than cells: only where the surplus is no number."""
    parts = line.rsplit(b" ", width)
    if len(parts) == width + 1 and not any(_is_number(part) for part in parts[0].split(b" ")[1:]):
        return parts[0], b" ".join(parts[1:])
    raise _refused(
        path,
        number,
        "A line has another width.",
        f"a word and {width} numbers",
        f"{line.count(b' ')} cells after the word",
    )


def _numbers(
    path: str | Path, lines: Sequence[tuple[int, list[bytes]]], width: int
) -> npt.NDArray[np.float32]:
    """float32 [lines, width]; the first bad cell is named."""
    cells = np.array([cells for _, cells in lines])
    try:
        wide = cells.astype(np.float64)
    except ValueError:
        wide = np.array([[_number(cell) for cell in cells] for _, cells in lines])
    # Python reads "1_000" as a thousand; a file of numbers that holds it is broken.
    wide[np.char.find(cells, b"_") >= 0] = np.nan
    with np.errstate(over="ignore", under="ignore"):
        narrow = wide.astype(np.float32)
    bad = ~np.isfinite(narrow) | ((narrow == 0) & (wide != 0))
    if bad.any():
        at, column = (int(n) for n in np.argwhere(bad)[np.argmin([lines[r][0] for r, _ in np.argwhere(bad)])])
        number, row = lines[at]
        raise _refused(
            path,
            number,
            "A cell is no finite number that float32 holds.",
            "float32",
            _shown(row[column]),
            column=column + 2,
        )
    return narrow


def _number(cell: bytes) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def _is_number(cell: bytes) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_header(line: bytes) -> bool:
    cells = line.split(b" ")
    return len(cells) == 2 and all(cell.isdigit() for cell in cells)


def _opened(path: str | Path) -> BinaryIO:
    try:
        if str(path).endswith(".gz"):
            return cast(BinaryIO, gzip.open(path, "rb"))
        return open(path, "rb")
    except OSError as error:
        raise _refused(
            path, None, "The vectors cannot be read.", "a text file", error.strerror or str(error)
        ) from error


def _shown(text: bytes) -> str:
    return repr(text[:40].decode("utf-8", "replace"))


def _refused(
    path: str | Path, line: int | None, message: str, expected: str, received: str, column: int | None = None
) -> DataError:
    place = Place(file=str(path), line=line, column=column)
    return DataError(finding("D158", message, place=place, expected=expected, received=received))
