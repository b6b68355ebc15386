"""The rows of a batch without which a step is good, found by running it with fewer of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_MOST = 16
"""Rows that are named; where more are bad, it is no matter of rows."""
_RUNS = 48

Trial = Callable[[Sequence[int]], bool | None]


def bad_rows(is_bad: Trial, of: int, suspects: Sequence[int] | None) -> list[int]:
    """Rows that make a step bad each on its own; empty where it is no matter of single rows.

    Args:
        is_bad: whether a batch of these rows alone is bad; None where it cannot be run.
        of: rows of the batch, which is bad as a whole.
        suspects: rows that look so. They are tested before others are searched.
    """
    if of == 1:
        return [0]
    if suspects and len(suspects) <= _MOST:
        others = [r for r in range(of) if r not in set(suspects)]
        alone = is_bad(suspects)
        if alone is None or (alone and not (others and is_bad(others))):
            return list(suspects)
    found = _search(is_bad, list(range(of)), [_RUNS])
    return found if found is not None and len(found) <= _MOST else []


def _search(is_bad: Trial, rows: list[int], runs: list[int]) -> list[int] | None:
    """Bad rows among rows that are bad together; None where it gives up."""
    if len(rows) == 1:
        return rows
    middle = len(rows) // 2
    found: list[int] = []
    for half in (rows[:middle], rows[middle:]):
        runs[0] -= 1
        if runs[0] < 0:
            return None
        if is_bad(half):
            inner = _search(is_bad, half, runs)
            if inner is None or len(found) + len(inner) > _MOST:
                return None
            found += inner
    return found
