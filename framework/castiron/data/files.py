"""Files: written whole or not at all, what is none, what expands too far, and digests."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def written_atomically(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write bytes to; it takes the name `path` when the block ends, and is removed where it fails.

    The folder is made where it is missing. A reader sees the old content or the new, never a part.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def append_whole(file: BinaryIO, data: bytes) -> None:
    """Write all of it at the end of an unbuffered file, or nothing: a reader never meets a part.

    Raises:
        OSError: it cannot be written; what there was of it is cut off again, as far as that can be done.
    """
    end = file.tell()
    rest = memoryview(data)
    try:
        while len(rest):
            rest = rest[file.write(rest) or 0 :]
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(end)
            file.seek(end)
        raise


FREE = 1 << 30
"""Bytes that any file may expand to."""
EXPANSION = 200
"""How many times its size a file may expand to beyond that. (Deflate reaches 1,032.)"""


def expands_too_far(unpacked: int, packed: int, most: int = EXPANSION) -> bool:
    """Whether so many bytes from so few are more than can be meant well."""
    return unpacked > max(FREE, most * packed)


def odd_kind(path: Path) -> str | None:
    """What stands at a path that is neither missing nor a file: reading it may wait for ever.

    Raises:
        OSError: it cannot be looked at.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISREG(mode):
        return None
    names = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return names.get(stat.S_IFMT(mode), "device")


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
