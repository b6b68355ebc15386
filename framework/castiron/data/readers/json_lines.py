"""The lines of a block of JSON, value by value: for what pyarrow cannot tell, or would change in silence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from castiron.data.readers.lists import shape_of
from castiron.data.readers.source import BadValue, Texts
from castiron.data.readers.text_blocks import TextBlock
from castiron.data.schema import Field


class Literal(str):
    """A number as it is written in the file."""

    __slots__ = ()


class JsonLines:
    """The lines of a block, parsed by Python's json when something needs a closer look."""

    def __init__(self, block: TextBlock) -> None:
        self.block = block
        self.bad_rows: dict[int, tuple[str, int | None]] = {}
        starts = block.scan.starts()
        numbers = block.first_line + block.scan.lines()
        ends = np.append(starts[1:], len(block.data))
        first = np.frombuffer(block.data, dtype=np.uint8)[starts]
        keep = np.ones(len(starts), dtype=bool)
        for i in np.flatnonzero((first == 32) | (first == 9)):
            keep[i] = bool(bytes(block.data[starts[i] : ends[i]]).strip())
        self._starts, self._ends = starts[keep], ends[keep]
        self.numbers = numbers[keep]

    @property
    def all_open_an_object(self) -> bool:
        """Whether every line begins with a brace. (pyarrow 26 takes a line `null` for a row of nulls, and
        crashes the process where it is the first of a block.)"""
        first = np.frombuffer(self.block.data, dtype=np.uint8)[self._starts]
        return bool((first == ord("{")).all())

    @cached_property
    def objects_head(self) -> list[dict[str, Any]]:
        """The first rows, to learn keys and kinds from."""
        found = (self._object(row, record=False) for row in range(min(100, len(self.numbers))))
        return [o for o in found if o is not None]

    @cached_property
    def _parsed(self) -> list[dict[str, Any] | None]:
        return [self._object(row, record=True) for row in range(len(self.numbers))]

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The rows that are JSON objects; numbers in them are `Literal`."""
        return [o for o in self._parsed if o is not None]

    @property
    def kept(self) -> np.ndarray:
        """Numbers of the rows that are JSON objects [rows] int64."""
        return np.array([i for i, o in enumerate(self._parsed) if o is not None], dtype=np.int64)

    def _object(self, row: int, *, record: bool) -> dict[str, Any] | None:
        text = bytes(self.block.data[self._starts[row] : self._ends[row]]).decode("utf-8")
        problem: tuple[str, int | None]
        try:
            value = json.loads(
                text,
                parse_float=Literal,
                parse_int=Literal,
                parse_constant=Literal,
                object_pairs_hook=_without_doubles,
            )
        except json.JSONDecodeError as error:
            problem = (f"{_shown(text)} ({error.msg})", error.colno)
        except _TwiceError as error:
            problem = (f"key {error.args[0]!r} twice", None)
        except RecursionError:
            problem = (f"{_shown(text)} (nested too deeply)", None)
        else:
            if isinstance(value, dict):
                return value
            problem = (_shown(text), None)
        if record:
            self.bad_rows[row] = problem
        return None

    def cells(self, part: Field, label: str) -> Texts:
        """The cells of a field, each from the text it is written as."""
        flat: list[str | None] = []
        bad: list[BadValue] = []
        size = int(np.prod(part.shape))
        written = 0
        for row, value in enumerate(o.get(label, _ABSENT) for o in self.objects):
            if value is _ABSENT:
                bad.append(BadValue(row, "D124", f"a row without the key {label!r}"))
                flat += [None] * size
                continue
            if value is None:
                flat += [None] * size
                continue
            items = _items(value, part.shape)
            if items is None:
                bad.append(_misshapen(row, value, part))
                flat += [None] * size
                continue
            texts, wrong, as_text = _texts(items, part)
            if wrong is not None:
                bad.append(BadValue(row, "D127" if part.is_text else "D101", wrong, part.form))
                texts = [None] * size
            written += as_text
            flat += texts
        try:
            cells = pa.array(flat, type=pa.string())
        except (UnicodeEncodeError, pa.ArrowInvalid):
            cells, more = _without_surrogates(flat, size)
            bad += more
        source = "text" if written or part.is_text else "number"
        return Texts(cells, source, bad, written)


_ABSENT = object()


class _TwiceError(ValueError):
    pass


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [k for k, _ in pairs]
        raise _TwiceError(next(k for k in keys if keys.count(k) > 1))
    return made


def _items(value: Any, shape: Sequence[int]) -> list[Any] | None:
    """The elements of a nested list in order; None if it has another shape."""
    level = [value]
    for size in shape:
        if any(not isinstance(v, list) or len(v) != size for v in level):
            return None
        level = [item for v in level for item in v]
    return None if any(isinstance(v, list | dict) for v in level) else level


def _misshapen(row: int, value: Any, part: Field) -> BadValue:
    expected = f"shape {list(part.shape)}" if part.shape else part.form
    if isinstance(value, list):
        return BadValue(row, "D116", shape_of(value), expected)
    if isinstance(value, dict):
        return BadValue(row, "D116", "a JSON object", expected)
    return BadValue(row, "D116", f"{_described(value)}", expected)


def _texts(items: list[Any], part: Field) -> tuple[list[str | None], str | None, int]:
    """Elements as the text they are written as; what is wrong with the first that cannot be; how many are
    JSON strings."""
    texts: list[str | None] = []
    written = 0
    labels = part.categories is not None or part.is_text
    for item in items:
        if item is None:
            texts.append(None)
        elif isinstance(item, bool):
            if part.is_text or (part.dtype != "bool" and part.categories is None):
                return texts, _described(item), written
            texts.append("true" if item else "false")
        elif isinstance(item, Literal):
            if part.is_text:
                return texts, _described(item), written
            texts.append(str(item))
        else:
            written += not labels
            texts.append(item)
    return texts, None, written


def _without_surrogates(flat: Sequence[str | None], size: int) -> tuple[pa.Array, list[BadValue]]:
    """Text with half a surrogate pair (`\\ud800`) is no text that UTF-8 can hold."""
    bad, clean = [], []
    for i, text in enumerate(flat):
        try:
            (text or "").encode("utf-8")
            clean.append(text)
        except UnicodeEncodeError:
            clean.append(None)
            bad.append(BadValue(i // size, "D127", f"{text!a}, half a surrogate pair", "Unicode text"))
    return pa.array(clean, type=pa.string()), bad


def _described(value: Any) -> str:
    if isinstance(value, bool):
        return f"{'true' if value else 'false'} (boolean)"
    if isinstance(value, Literal):
        return f"{value} (number)"
    return f"{_shown(value)} (text)" if isinstance(value, str) else _shown(str(value))


def _shown(text: str, limit: int = 60) -> str:
    text = text.rstrip("\r\n")
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
