"""A file that threads read in parts, and its digest."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from castiron.data.readers import parts as module
from castiron.data.readers.parts import Parts, PartsDigest

CONTENT = random.Random(5).randbytes(5_000)


@pytest.fixture(scope="module")
def descriptor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    path: Path = tmp_path_factory.mktemp("parts") / "a"
    path.write_bytes(CONTENT)
    with path.open("rb") as file:
        yield file.fileno()


@settings(max_examples=200, deadline=None)
@given(
    reads=st.lists(st.tuples(st.integers(0, 6_000), st.integers(0, 3_000)), max_size=12),
    large=st.sampled_from([1, 500]),
    waiting=st.sampled_from([0, 2_000, 10**9]),
)
def test_the_digest_is_that_of_the_file_whatever_is_read(
    descriptor: int, reads: list[tuple[int, int]], large: int, waiting: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_LARGE", large)
        patch.setattr(module, "_WAITING", waiting)
        patch.setattr(module, "_PIECE", 700)
        digest = PartsDigest(descriptor)
        for at, size in reads:
            file = Parts(descriptor, len(CONTENT), digest.saw)
            file.seek(at)
            assert bytes(file.read(size)) == CONTENT[at : at + size]
        assert digest.finish() == blake3(CONTENT).hexdigest()


def test_threads_that_read_at_once(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LARGE", 1)
    for _ in range(20):
        digest = PartsDigest(descriptor)

        def read(at: int, digest: PartsDigest = digest) -> bytes:
            file = Parts(descriptor, len(CONTENT), digest.saw)
            file.seek(at)
            return bytes(file.read(50))

        with ThreadPoolExecutor(4) as pool:
            assert b"".join(pool.map(read, range(0, len(CONTENT), 50))) == CONTENT
        assert digest.finish() == blake3(CONTENT).hexdigest()


def test_it_is_a_file_with_a_place_of_its_own(descriptor: int) -> None:
    one, other = Parts(descriptor, len(CONTENT), None), Parts(descriptor, len(CONTENT), None)
    assert one.seek(-10, os.SEEK_END) == len(CONTENT) - 10
    assert bytes(other.read(4)) == CONTENT[:4]
    assert bytes(one.read()) == CONTENT[-10:]
    assert bytes(one.read(3)) == b""
    assert other.seek(2, os.SEEK_CUR) == other.tell() == 6
    assert one.readable()
    assert one.seekable()


def test_a_file_that_is_shorter_than_it_was(descriptor: int) -> None:
    file = Parts(descriptor, 2 * len(CONTENT), None)
    assert bytes(file.read()) == CONTENT
