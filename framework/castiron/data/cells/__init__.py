"""Cells of a file to values of a field: what is a number, what is missing, what is neither."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import numpy as np

from castiron.data.cells.judged import Faults, Judged, Kind, shown
from castiron.data.cells.labels import judge_labels, judge_text
from castiron.data.cells.number_texts import judge_number_texts
from castiron.data.cells.numbers import judge_numbers
from castiron.data.readers.source import BadValue, Cells, Numbers
from castiron.data.schema import Field

__all__ = ["Faults", "Judged", "judge", "shown"]


def judge(
    cells: Cells,
    part: Field,
    spellings: tuple[str, ...],
    seen: float = 0.0,
    room: np.ndarray | None = None,
) -> Judged:
    """Cast the cells of one field in one block, and find everything that is not an exact cast.

    Args:
        spellings: cell texts that mean missing, trimmed.
        seen: the largest relative error of this field's casts in the blocks before.
        room: [rows, *shape] in the field's dtype, where the cast may be written to; `values` is it then.
    """
    judged: Judged | None = None
    if isinstance(cells, Numbers):
        judged = judge_numbers(cells, part, seen, room)
        odd = judged is None or any(f.kind != "rounded" for f in judged.faults)
        if odd and cells.as_text is not None:
            cells = cells.as_text()  # to judge its spelling, and to show it as it is written
    if not isinstance(cells, Numbers):
        if part.is_text:
            judged = judge_text(cells, spellings)
        elif part.categories is not None or part.dtype == "bool":
            judged = judge_labels(cells, part, spellings)
        else:
            judged = judge_number_texts(cells, part, spellings)
    assert judged is not None
    judged.what_is_missing = partial(_missing_words, cells)
    if cells.bad:
        _add_bad(judged, cells.bad, part)
    return judged


def _missing_words(cells: Cells, position: int) -> str:
    if isinstance(cells, Numbers):
        if cells.as_text is None:
            return "NaN" if cells.missing is None or not cells.missing.flat[position] else "null"
        cells = cells.as_text()
    text = cells.cells[position].as_py()
    if text is None:
        return "null"
    return f"{shown(text)}, which means missing" if text else "an empty cell"


def _add_bad(judged: Judged, bad: Sequence[BadValue], part: Field) -> None:
    """What the reader had already found: such cells are no missing ones, but absent ones are."""
    size = int(np.prod(part.shape))
    groups: defaultdict[tuple[str, str], list[BadValue]] = defaultdict(list)
    for one in bad:
        groups[one.code, one.expected].append(one)
    for (code, expected), some in groups.items():
        rows = np.array([b.row for b in some], dtype=np.int64)
        words = {b.row * size: b.received for b in some}
        if judged.missing is not None:
            judged.missing.reshape(-1, size)[rows] = code == "D124"
        if expected and not expected.endswith(f"'{part.name}'"):
            expected = f"{expected} for field '{part.name}'"
        kind: Kind = "absent" if code == "D124" else "bad"
        judged.faults.append(Faults(code, kind, rows * size, words.__getitem__, expected=expected))
