"""Cells that stand for something else: categories, booleans; and cells that are text."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from castiron.data.cells.judged import Faults, Judged, bounds, shown
from castiron.data.readers.source import Texts
from castiron.data.schema import Field
from castiron.formats import number_format

_TRUE = ("true", "t", "yes", "y", "1", "1.0")
_FALSE = ("false", "f", "no", "n", "0", "0.0")


def judge_labels(cells: Texts, part: Field, spellings: tuple[str, ...]) -> Judged:
    """Cells to class indices, or to booleans (true/false, t/f, yes/no, y/n, 1/0, in any case)."""
    assert part.dtype is not None
    meaning = part.categories
    lookup: Callable[[str], int | None] = _boolean if meaning is None else meaning.get
    coded = pc.utf8_trim(cells.cells, " \t").dictionary_encode()
    words = coded.dictionary.to_pylist()
    original = cells.cells
    table = np.zeros(len(words) + 1, dtype=number_format(part.dtype).numpy_dtype)
    state = np.zeros(len(words) + 1, dtype=np.int8)  # 0 known, 1 missing, 2 unknown
    state[-1] = 1
    for i, word in enumerate(words):
        if word in spellings and (meaning is None or word not in meaning):
            state[i] = 1
        elif (value := lookup(word)) is not None:
            table[i] = value
        elif (number := _as_boolean_number(word) if meaning is None else None) is not None:
            table[i] = number
        else:
            state[i] = 2
    index = pc.fill_null(coded.indices, len(words)).to_numpy(zero_copy_only=False)
    found = state[index]
    missing, unknown = found == 1, found == 2
    judged = Judged(table[index], missing if missing.any() else None)
    judged.lowest, judged.highest = bounds(np.asarray(judged.values), found != 0)
    if unknown.any():

        @functools.cache  # by word: a wrong label is seldom alone
        def described(word: str) -> str:
            near = difflib.get_close_matches(word.strip(), meaning or (), n=1)
            return f"{shown(word)} (text){f', close to {near[0]!r}' if near else ''}"

        def received(i: int) -> str:
            return described(original[i].as_py())

        code = "D115" if meaning is None else "D114"
        judged.faults.append(Faults(code, "bad", np.flatnonzero(unknown), received, expected=_expected(part)))
    if part.shape:
        judged.values = np.asarray(judged.values).reshape(-1, *part.shape)
        if judged.missing is not None:
            judged.missing = judged.missing.reshape(-1, *part.shape)
    return judged


def _boolean(word: str) -> int | None:
    lower = word.lower()
    return 1 if lower in _TRUE else 0 if lower in _FALSE else None


def _as_boolean_number(word: str) -> int | None:
    """`1.00` and `0e0` are numbers that are 1 and 0."""
    if not word.isascii() or not set(word) <= set("0123456789.+-eE"):
        return None
    try:
        value = float(word)
    except ValueError:
        return None
    return int(value) if value in (0.0, 1.0) else None


def _expected(part: Field) -> str:
    if part.categories is None:
        return f"bool (true or false, yes or no, 1 or 0) for field '{part.name}'"
    names = list(part.categories)
    told = ", ".join(repr(n) for n in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"a category of field '{part.name}' ({told})"


def judge_text(cells: Texts, spellings: tuple[str, ...]) -> Judged:
    """Text stays as it is, blanks and all; nulls, the empty cell and words that mean missing are not text.

    Words are compared without surrounding blanks, as in other fields; a cell of blanks alone is text.
    """
    text = cells.cells
    missing = pc.is_null(text)
    if "" in spellings:
        missing = pc.or_(missing, pc.fill_null(pc.equal(text, ""), False))
    if words := [s for s in spellings if s]:
        found = pc.is_in(pc.utf8_trim(text, " \t"), value_set=pa.array(words, text.type))
        missing = pc.or_(missing, pc.fill_null(found, False))
    mask: np.ndarray = missing.to_numpy(zero_copy_only=False)
    return Judged(text, mask if mask.any() else None)
