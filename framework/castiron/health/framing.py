"""TensorBoard's record framing: length and data, each with its checksum.

tensorboard's own `RecordWriter` takes its checksum byte by byte in Python, which costs a figure several
milliseconds; here NumPy takes it of 256 bytes at a time.
"""

from __future__ import annotations

import functools
import struct

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78
"""Castagnoli's, bits reversed (RFC 3720, appendix B.4)."""
_BLOCK = 256
"""Bytes at a time."""
_SHORT = 256
"""Bytes up to which a loop over them takes less time: between training steps the tables are in no cache."""


def framed(record: bytes) -> bytes:
    """A record as it stands in a TFRecord or event file: uint64 length, uint32 masked CRC of that, data,
    uint32 masked CRC of the data; all little-endian (TensorFlow's "TFRecords format details")."""
    length = struct.pack("<Q", len(record))
    return b"".join(
        (length, struct.pack("<I", masked(crc32c(length))), record, struct.pack("<I", masked(crc32c(record))))
    )


def masked(crc: int) -> int:
    """A CRC, rotated and moved, so that the CRC of data that holds CRCs is sound (same source)."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """The Castagnoli CRC of some bytes (RFC 3720, appendix B.4).

    A CRC is linear: what a byte adds to it depends on the byte and on how many come after it alone. So all
    bytes of a block are looked up at once. The initial state counts as if it were added to the first four
    bytes, and zeros before them count for nothing.
    """
    if len(data) < _SHORT:
        one, state = _byte_table(), 0xFFFFFFFF
        for byte in data:
            state = one[(state ^ byte) & 0xFF] ^ (state >> 8)
        return state ^ 0xFFFFFFFF
    tables, places, (a, b, c, d) = _tables()
    empty = -len(data) % _BLOCK
    padded = np.zeros(empty + len(data), np.int64)
    padded[empty:] = np.frombuffer(data, np.uint8)
    padded[empty : empty + 4] ^= 0xFF
    parts = tables.take(padded.reshape(-1, _BLOCK) + places)
    state = 0
    for crc in np.bitwise_xor.reduce(parts, axis=1).tolist():
        state = crc ^ a[state & 0xFF] ^ b[(state >> 8) & 0xFF] ^ c[(state >> 16) & 0xFF] ^ d[state >> 24]
    return state ^ 0xFFFFFFFF


@functools.cache
def _byte_table() -> list[int]:
    """The CRC of each byte alone."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> np.uint32(1)) ^ np.uint32(_POLYNOMIAL), table >> np.uint32(1))
    found: list[int] = table.tolist()
    return found


@functools.cache
def _tables() -> tuple[NDArray[np.uint32], NDArray[np.int64], list[list[int]]]:
    """What a byte at each place of a block adds to its CRC, [_BLOCK · 256], with where each place begins in
    it; and the first four places again, for the state that a block is met with."""
    one = np.array(_byte_table(), np.uint32)
    rows = [one]
    for _ in range(_BLOCK - 1):
        last = rows[-1]
        rows.append((last >> np.uint32(8)) ^ one[last & np.uint32(0xFF)])
    made = np.stack(rows[::-1])
    first: list[list[int]] = made[:4].tolist()
    return made.reshape(-1), np.arange(_BLOCK, dtype=np.int64) * 256, first
