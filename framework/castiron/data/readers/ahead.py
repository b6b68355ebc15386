"""Work in threads, in order: reading one block ahead, and columns side by side. Parsing and casting release
the GIL."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, Full, Queue
from typing import Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")
_PATIENCE = 0.05
"""Seconds between looks at whether anyone still wants the next item."""


class _Ahead(Generic[T]):
    """The producing thread and its queue of one item."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._queue: Queue[tuple[T | None, BaseException | None]] = Queue(maxsize=1)
        self._unwanted = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put((item, None)):
                    break
            else:
                self._put((None, StopIteration()))
        except BaseException as error:  # handed to the consumer, which raises it
            self._put((None, error))
        finally:
            if isinstance(self._items, Generator):
                self._items.close()

    def _put(self, item: tuple[T | None, BaseException | None]) -> bool:
        while not self._unwanted.is_set():
            with suppress(Full):
                self._queue.put(item, timeout=_PATIENCE)
                return True
        return False

    def next(self) -> tuple[T | None, BaseException | None]:
        return self._queue.get()

    def stop(self) -> None:
        self._unwanted.set()
        with suppress(Empty):
            self._queue.get_nowait()
        self._thread.join()


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items in the same order; the next is made while the last is in use.

    What `items` raises is raised here, in its place. Closing this generator closes `items`.
    """
    worker = _Ahead(items)
    try:
        while True:
            item, error = worker.next()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        worker.stop()


def side_by_side(work: Callable[[T], U], items: Iterable[T], threads: int) -> Iterator[U]:
    """What `map` gives, worked out by threads. At most twice as many items as there are threads are under way
    or waiting to be fetched.

    What `work` raises is raised here, in its place, once the threads have ended what they are at.
    """
    under_way: deque[Future[U]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                under_way.append(pool.submit(work, item))
                if len(under_way) == 2 * threads:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
