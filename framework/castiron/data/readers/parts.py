"""A file of which several threads read parts, and its digest, made from what they read."""

from __future__ import annotations

import heapq
import io
import os
import threading
from collections.abc import Callable

import pyarrow as pa
from blake3 import blake3

_PIECE = 1 << 17
"""Bytes that are read at a time for the digest alone: they stay in the processor's cache."""
_LARGE = 1 << 16
"""Bytes of a part that is worth handing on."""
_WAITING = 64 << 20
"""Bytes that wait for the digest at most; what comes while they wait is read again."""


class PartsDigest:
    """BLAKE3 of a file of which threads read large parts, in about the order of the file.

    Each digests what it has read, where all before it is digested; else whoever does that goes on with it. So
    only what lies between is read for the digest alone: to read a file twice at once takes twice as long.

    Args:
        descriptor: of the file; stays open until `finish`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._digest = blake3()
        self._at = 0
        self._early: list[tuple[int, int, pa.Buffer]] = []
        """Parts that wait for what lies before them; the number keeps buffers from being compared."""
        self._number = 0
        self._waiting = 0
        self._busy = False
        self._lock = threading.Lock()

    def saw(self, at: int, part: pa.Buffer) -> None:
        """So it stands at this place of the file."""
        with self._lock:
            if part.size < _LARGE or self._waiting + part.size > _WAITING:
                return
            self._waiting += part.size
            self._number += 1
            heapq.heappush(self._early, (at, self._number, part))
            if self._busy:
                return
            self._busy = True
        # What waits for too long waits for a part that nobody reads.
        while self._take(lambda: self._early[0][0] <= self._at or 2 * self._waiting > _WAITING):
            pass

    def finish(self) -> str:
        """The digest of the whole file, in hexadecimal, when the threads have ended."""
        while self._take(lambda: True):
            pass
        self._at = read_into(self._digest, self._descriptor, self._at, None)
        return self._digest.hexdigest()

    def _take(self, ready: Callable[[], bool]) -> bool:
        """Digest the first of the parts; False where none is ready."""
        with self._lock:
            if not self._early or not ready():
                self._busy = False
                return False
            at, _, part = heapq.heappop(self._early)
        self._at = read_into(self._digest, self._descriptor, self._at, at)
        if self._at < at + part.size:
            self._digest.update(memoryview(part)[self._at - at :])
            self._at = at + part.size
        with self._lock:
            self._waiting -= part.size
        return True


def read_into(digest: blake3, descriptor: int, at: int, end: int | None) -> int:
    """Digest a file from here to there, or to its end. → where that is.

    Read and not mapped: a file that is cut off under a map ends the process.
    """
    piece = memoryview(bytearray(_PIECE))
    while end is None or at < end:
        wanted = _PIECE if end is None else min(_PIECE, end - at)
        size = os.preadv(descriptor, [piece[:wanted]], at)
        if not size:
            break
        digest.update(piece[:size])
        at += size
    return at


class Parts(io.RawIOBase):
    """An open file with a position of its own, however many share the descriptor.

    What is read lies in pyarrow's memory, where it is used again; Python's would be new pages every time.

    Args:
        size: of the file, in bytes.
        saw: is handed what was read, and where.
    """

    def __init__(self, descriptor: int, size: int, saw: Callable[[int, pa.Buffer], None] | None) -> None:
        super().__init__()
        self._descriptor, self._size, self._saw = descriptor, size, saw
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def read(self, size: int | None = -1) -> pa.Buffer:
        """The next bytes, fewer only where the file ends."""
        rest = max(self._size - self._at, 0)
        wanted = rest if size is None or size < 0 else min(size, rest)
        part = pa.allocate_buffer(wanted)
        room, done = memoryview(part), 0
        while done < wanted and (got := os.preadv(self._descriptor, [room[done:]], self._at + done)):
            done += got
        if done < wanted:  # it was cut off meanwhile
            part = part.slice(0, done)
        if self._saw is not None:
            self._saw(self._at, part)
        self._at += done
        return part
