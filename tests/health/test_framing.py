"""Records are framed as tensorboard's own writer frames them."""

from __future__ import annotations

import io
import random

from hypothesis import given
from hypothesis import strategies as st
from tensorboard.summary.writer.record_writer import RecordWriter

from castiron.health.framing import crc32c, framed


def by_tensorboard(record: bytes) -> bytes:
    file = io.BytesIO()
    RecordWriter(file).write(record)
    return file.getvalue()


def test_the_checksums_of_the_standard() -> None:
    """RFC 3720, appendix B.4."""
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0


@given(st.binary(max_size=1200))
def test_as_tensorboard_frames_them(record: bytes) -> None:
    assert framed(record) == by_tensorboard(record)


def test_of_any_length() -> None:
    data = random.Random(0).randbytes(20_000)
    for length in (1, 4, 47, 48, 49, 255, 256, 257, 511, 512, 513, 20_000):
        assert framed(data[:length]) == by_tensorboard(data[:length]), length
        assert framed(bytes(length)) == by_tensorboard(bytes(length)), length
