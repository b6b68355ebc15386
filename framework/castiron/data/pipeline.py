"""`grain`, loaded when it is first needed and without its side effects."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from functools import cache
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Source(Protocol[T_co]):
    """What `grain` reads from: elements by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> T_co: ...


def elements(source: Source[T], *, threads: int = 0, ahead: int = 0) -> Iterator[T]:
    """The elements of `source` in order, read by the caller, or by `threads` up to `ahead` of it.

    Closed when it ends or is dropped; threads then stop after the element they are at.
    """
    grain = load_grain()
    # Leaves, not containers: grain walks every element three times to count its bytes, which for the arrays
    # of many small batches takes as long as making them.
    leaves = grain.MapDataset.source(_Leaves(source))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    iterator = iter(leaves.to_iter_dataset(options))
    try:
        for leaf in iterator:
            yield leaf.element
    finally:
        iterator.close()


class _Leaf(Generic[T]):
    __slots__ = ("element",)

    def __init__(self, element: T) -> None:
        self.element = element


class _Leaves(Generic[T]):
    def __init__(self, source: Source[T]) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> _Leaf[T]:
        return _Leaf(self._source[index])


@cache
def load_grain() -> Any:
    """The module `grain`.

    Importing it (0.2.18) warns that JAX is missing, through absl, which for that gives the root logger a
    handler. Neither is the user's concern: the warning is withheld, and the handler taken away again.
    """
    absl = importlib.import_module("absl.logging")
    logger = absl.get_absl_logger()
    level, handlers = logger.level, logging.root.handlers[:]
    logger.setLevel(logging.ERROR)
    try:
        return importlib.import_module("grain")
    finally:
        logger.setLevel(level)
        for handler in logging.root.handlers[:]:
            if handler not in handlers:
                logging.root.removeHandler(handler)
