"""Text to numbers, by one strict grammar: an optional sign, ASCII digits, a point, an exponent.

Blanks around a number are allowed; `1_000`, `0x10`, `1,5`, `１２` and `12 kg` are text. All cells are judged
at once by regular expressions; what those leave open (a long integer, an exponent where an integer is
wanted) is decided cell by cell with exact arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from castiron.data.casts import cast
from castiron.data.cells.judged import Faults, Judged, shown
from castiron.data.cells.numbers import judge_cast
from castiron.data.readers.source import Texts
from castiron.data.schema import Field
from castiron.formats import DTypeName, number_format

_INTEGER = "^[+-]?[0-9]+$"
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_INFINITE = "^[+-]?(?i:inf|infinity)$"
_NAN = "^[+-]?(?i:nan)$"
_NOT_ZERO = "^[+-]?[0.]*[1-9]"
_EXACT = 2**53


def judge_number_texts(cells: Texts, part: Field, spellings: tuple[str, ...]) -> Judged:
    """Read the cells of a block as numbers of the field's format."""
    read = _Read(cells.cells, spellings)
    assert part.dtype is not None
    judge = _integers if number_format(part.dtype).is_integer else _floats
    judged = judge(read, cells.cells, part)
    if read.foreign.any():
        at = np.flatnonzero(read.foreign)
        judged.faults.append(Faults("D101", "bad", at, lambda i: f"{shown(cells.cells[i].as_py())} (text)"))
    if part.shape:
        judged.values = np.asarray(judged.values).reshape(-1, *part.shape)
        if judged.missing is not None:
            judged.missing = judged.missing.reshape(-1, *part.shape)
    return judged


class _Read:
    """Which cells are what. Only those that are no numbers at first sight are looked at again."""

    def __init__(self, text: pa.Array, spellings: tuple[str, ...]) -> None:
        self.number = _matches(text, _NUMBER)
        self.missing = np.zeros(len(text), dtype=bool)
        self.infinite = np.zeros(len(text), dtype=bool)
        self.foreign = ~self.number
        rest = self.foreign.nonzero()[0]
        if len(rest):
            text = self._look_again(text, rest, spellings)
        if any(re.fullmatch(_NUMBER, word) for word in spellings):
            named = self.number & _mask(pc.is_in(text, value_set=pa.array(spellings, text.type)))
            self.missing |= named
            self.number &= ~named
        self.text = text

    def _look_again(self, text: pa.Array, rest: np.ndarray, spellings: tuple[str, ...]) -> pa.Array:
        """Blanks are trimmed, what means missing is found; returns the cells with numbers trimmed."""
        some = pc.utf8_trim(text.take(pa.array(rest)), " \t")
        missing = _mask(pc.is_null(some)) | _matches(some, _NAN)
        if spellings:
            missing |= _mask(pc.is_in(some, value_set=pa.array(spellings, type=some.type)))
        number = _matches(some, _NUMBER) & ~missing
        infinite = _matches(some, _INFINITE) & ~missing
        self.missing[rest] = missing
        self.infinite[rest] = infinite
        self.number[rest] = number
        if number.any() or infinite.any():
            text = pc.replace_with_mask(text, pa.array(self.foreign), some)
        self.foreign = ~(self.number | self.missing | self.infinite)
        return text

    @cached_property
    def integer(self) -> np.ndarray:
        """Numbers that are written as integers."""
        integer: np.ndarray = _matches(self.text, _INTEGER) & self.number
        return integer

    def floats(self) -> np.ndarray:
        """Every number as the nearest float64, 0 elsewhere [n]."""
        kept = self.text
        if not self.number.all():
            kept = pc.if_else(pa.array(self.number), self.text, pa.scalar("0", self.text.type))
        try:
            made = pc.cast(kept, pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:
            made = np.array([float(t) for t in kept.to_pylist()], dtype=np.float64)
        if self.infinite.any():
            made = made.copy()
            for i in np.flatnonzero(self.infinite):
                made[i] = float(self.text[i].as_py())
        floats: np.ndarray = made
        return floats


def _floats(read: _Read, original: pa.Array, part: Field) -> Judged:
    assert part.dtype is not None
    values = read.floats()
    skip = read.missing | read.foreign
    overflow = read.number & np.isinf(values)
    underflow = read.number & (values == 0)
    if underflow.any():
        underflow &= _matches(read.text, _NOT_ZERO)
    long = (np.abs(values) >= _EXACT) & ~overflow & read.number
    for i in np.flatnonzero(long):
        long[i] = read.integer[i] and int(read.text[i].as_py()) != int(values[i])
    lost = overflow | underflow | long
    if lost.any():
        values = values.copy()
        values[lost] = 0  # judged below; the cast must not count them again
        skip = skip | lost
    beyond = bool((np.abs(values) > number_format(part.dtype).max_exact_int).any())
    integers = read.integer if beyond else None
    result = cast(values, part.dtype, integers=integers, tolerance=part.tolerance)

    def words(i: int) -> str:
        return f"{shown(original[i].as_py())} (text)"

    judged = judge_cast(
        values, skip if skip.any() else None, result, part, words=words, integers=read.integer
    )
    judged.missing = read.missing if read.missing.any() else None
    for code, mask in (("D103", overflow), ("D104", underflow), ("D105", long)):
        if mask.any():
            judged.faults.append(Faults(code, "lossy", np.flatnonzero(mask), words, _why(code, part.dtype)))
    return judged


def _why(code: str, to: DTypeName) -> Callable[[int], str]:
    form = number_format(to)
    told = {
        "D103": f"The largest {to} is {form.max:.7g}.",
        "D104": f"The smallest {to} above zero is {form.smallest_subnormal or 0:.7g}.",
        "D105": f"Integers beyond {form.max_exact_int:,} are not all {to} values.",
    }[code]
    return lambda _: told


def _integers(read: _Read, original: pa.Array, part: Field) -> Judged:
    assert part.dtype is not None
    form = number_format(part.dtype)
    lengths = pc.fill_null(pc.binary_length(read.text), 0).to_numpy(zero_copy_only=False)
    short = read.integer & (lengths <= 18)
    digits = pc.if_else(pa.array(short), pc.utf8_ltrim(read.text, "+"), pa.scalar("0", read.text.type))
    values = pc.cast(digits, pa.int64()).to_numpy(zero_copy_only=False)
    # Up to 15 digits, every decimal has a float64 of its own: whole there, whole in the text.
    plain = read.number & ~read.integer & (lengths <= 16) & ~_matches(read.text, "[eE]")
    fraction = np.zeros(len(values), dtype=bool)
    if plain.any():
        floats = read.floats()
        fraction = plain & (np.rint(floats) != floats)
        values = np.where(plain & ~fraction, np.rint(np.where(plain, floats, 0)).astype(np.int64), values)
    outside = read.infinite.copy()
    open_cells = (read.number & ~short & ~plain).nonzero()[0]
    exact: dict[int, int] = {}
    for i in open_cells:
        whole = _whole(read.text[i].as_py())
        if whole == "fraction":
            fraction[i] = True
        elif whole == "large" or not form.min <= whole <= form.max:
            outside[i] = True
        else:
            exact[int(i)] = int(whole)
    result = cast(values, part.dtype)
    numbers = result.values.copy() if exact else result.values
    for i, whole_number in exact.items():
        numbers[i] = whole_number
    lossy = np.zeros(len(values), dtype=bool) if result.lossy is None else result.lossy
    outside |= lossy
    bad = fraction | outside | read.foreign
    skip = read.missing | bad

    def words(i: int) -> str:
        return f"{shown(original[i].as_py())} (text)"

    judged = judge_cast(numbers, skip if skip.any() else None, cast(numbers, part.dtype), part, words=words)
    judged.missing = read.missing if read.missing.any() else None
    range_words = f"an integer from {int(form.min)} to {int(form.max)} ({part.dtype}) for field '{part.name}'"
    for code, mask, expected in (("D106", fraction, ""), ("D107", outside & ~read.infinite, range_words),
                                 ("D108", outside & read.infinite, "")):  # fmt: skip
        if mask.any():
            judged.faults.append(Faults(code, "lossy", np.flatnonzero(mask), words, expected=expected))
    return judged


def _whole(text: str) -> int | Literal["fraction", "large"]:
    """The integer that a number in text is, exactly, whatever its exponent."""
    number = Decimal(text)
    if number and number.adjusted() > 20:
        return "large"
    if number and number.adjusted() < -1:
        return "fraction"
    return int(number) if number == number.to_integral_value() else "fraction"


def _matches(text: pa.Array, pattern: str) -> np.ndarray:
    return _mask(pc.match_substring_regex(text, pattern))


def _mask(values: pa.Array) -> np.ndarray:
    mask: np.ndarray = pc.fill_null(values, False).to_numpy(zero_copy_only=False)
    return mask
