"""Work of one kind on all cores. NumPy and Arrow release Python's lock while they compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa

T = TypeVar("T")


def side_by_side(work: Sequence[Callable[[], T]]) -> list[T]:
    """What each gives, in their order, by as many threads as Arrow takes; the first error of any."""
    threads = min(pa.cpu_count(), len(work))
    if threads < 2:
        return [each() for each in work]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda each: each(), work))
