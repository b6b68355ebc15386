"""A checkpoint as a file: written whole, sealed with a digest of its bytes, its manifest a record of its own.

torch's checkpoints are zip archives. Two things are added which torch itself passes over: the record
`castiron.json`, which is read without unpickling anything, and as the archive's comment the BLAKE3 of every
byte before it. A file that was cut off, or in which a bit has changed, does not match its seal.

Keras's are safetensors. Their header has the manifest, and the BLAKE3 of the whole file with zeros in place
of the digest itself.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from blake3 import blake3

from castiron.data.files import expands_too_far, odd_kind
from castiron.diagnostics import ManifestError, Place, finding
from castiron.training.writing import fsync_folder, written

RECORD = "castiron.json"
"""Name of the manifest within the archive, below the archive's own folder."""
PART = ".part"
"""Ending of a file that is being written."""
STATE = "castiron"
"""Key of a safetensors header for what is no tensor; exported weights have none."""
SEAL = "castiron_seal"
"""Key of the same header for the seal."""
_MARK = b"castiron-blake3:"
UNSEALED = _MARK.decode() + "0" * 64
"""What stands for the seal until it is known."""
_SEAL = len(_MARK) + 64
_MOST_RECORD = 256 << 20
"""Bytes of a manifest; a larger one was not written here."""
_END = b"PK\x05\x06"
_END_BYTES = 22
_PICKLE = b"\x80"


@contextmanager
def new_file(path: Path, replacing: Callable[[], None] | None = None) -> Iterator[IO[bytes]]:
    """A file to write and read; it takes the name `path`, synced, when the block ends, and is removed where
    it fails. What stands at `path` stays whole until then.

    Args:
        replacing: called when the new file is on the disk, right before it takes its name.

    Raises:
        RunError: the disk is full, or the folder cannot be written (X819).
    """
    part = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    with written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if replacing is not None:
                replacing()
            os.replace(part, path)
            fsync_folder(path.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def seal(file: IO[bytes], manifest: str) -> None:
    """Add the manifest to an archive that torch has just written, and seal it. `file` is open for both."""
    with zipfile.ZipFile(file, "a") as archive:
        names = archive.namelist()
        folder = f"{names[0].partition('/')[0]}/" if names and "/" in names[0] else ""
        archive.writestr(folder + RECORD, manifest)
        archive.comment = _MARK + b"0" * 64
    file.flush()
    end = file.seek(0, os.SEEK_END) - _SEAL
    file.seek(0)
    digest = _digest(file, end)
    file.seek(end)
    file.write(_MARK + digest.encode())


def seal_safetensors(path: Path) -> None:
    """Seal a safetensors file that was just written with `UNSEALED` under `SEAL`, and sync it."""
    with open(path, "r+b") as file:
        head, at = _seal_of(file)
        assert at is not None
        digest = _digest(file, file.seek(0, os.SEEK_END) - file.seek(len(head)), head)
        file.seek(at)
        file.write(digest.encode())
        file.flush()
        os.fsync(file.fileno())


def _seal_of(file: BinaryIO) -> tuple[bytes, int | None]:
    """Length and header of a safetensors file, zeros in place of its digest; and where that stands."""
    file.seek(0)
    head = file.read(8)
    head += file.read(int.from_bytes(head, "little"))
    at = head.find(_MARK)
    if at < 0:
        return head, None
    at += len(_MARK)
    return head[:at] + b"0" * 64 + head[at + 64 :], at


def _digest(file: IO[bytes], size: int, begun: bytes = b"") -> str:
    """BLAKE3 of what is given, and of the next so many bytes."""
    hasher = blake3(begun)
    while size and (part := file.read(min(size, 1 << 20))):
        hasher.update(part)
        size -= len(part)
    return hasher.hexdigest()


def damage(path: Path) -> str | None:
    """What is wrong with the bytes of a file: None where its seal says nothing is, or where it carries none.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        if path.suffix == ".safetensors":
            return _damaged_safetensors(file)
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return "it is empty"
        file.seek(0)
        head = file.read(4)
        if head[:1] == _PICKLE:  # torch's form before 1.6, which nobody seals
            return None
        if head != b"PK\x03\x04":
            return "its beginning is not that of a checkpoint"
        file.seek(max(0, size - _SEAL))
        tail = file.read()
        if tail.startswith(_MARK):
            file.seek(0)
            if _digest(file, size - _SEAL) != tail[len(_MARK) :].decode("ascii", "replace"):
                return "its bytes are not those that were written"
            return None
        file.seek(0)
        if not _ends_as_an_archive(file, size):
            return "it ends in the middle"
        if _has_record(file):
            return "its seal is gone"
    return None


def is_sealed(path: Path) -> bool:
    """Whether a file carries the digest of its bytes."""
    with open(path, "rb") as file:
        if path.suffix == ".safetensors":
            return _seal_of(file)[1] is not None
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _SEAL))
        return file.read(len(_MARK)) == _MARK


def _ends_as_an_archive(file: BinaryIO, size: int) -> bool:
    file.seek(max(0, size - _END_BYTES - 65535))
    return _END in file.read()


def _has_record(file: BinaryIO) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return _record_name(archive) is not None
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        return False


def _damaged_safetensors(file: BinaryIO) -> str | None:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(8)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > size - 8:
        return "it ends in the middle"
    try:
        header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        last = max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return "its header is not that of safetensors"
    if not isinstance(last, int):
        return "its header is not that of safetensors"
    if size - 8 - length != last:
        return "it ends in the middle, or has grown"
    words = header.get("__metadata__")
    head, at = _seal_of(file)
    if at is None:
        return "its seal is gone" if isinstance(words, dict) and STATE in words else None
    file.seek(at)
    seal = file.read(64)
    file.seek(len(head))
    if _digest(file, last, head).encode() != seal:
        return "its bytes are not those that were written"
    return None


def read_record(path: Path) -> bytes | None:
    """The manifest of an archive as it was written; None where it has none.

    Raises:
        ManifestError: the file is no archive, or the record cannot be read (C601).
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        if file.read(1) == _PICKLE:
            return None
    try:
        with zipfile.ZipFile(path) as archive:
            name = _record_name(archive)
            if name is None:
                return None
            if archive.getinfo(name).file_size > _MOST_RECORD:
                raise damaged(path, f"its manifest has {archive.getinfo(name).file_size:,} bytes")
            return archive.read(name)
    except (
        zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, NotImplementedError, RuntimeError,
    ) as e:  # fmt: skip
        raise damaged(path, f"it is no readable archive ({e})") from None


def _record_name(archive: zipfile.ZipFile) -> str | None:
    return next((n for n in archive.namelist() if n.rpartition("/")[2] == RECORD and n.count("/") <= 1), None)


def check_intact(path: Path) -> None:
    """Refuse a file that is not what was written.

    Raises:
        ManifestError: it is missing, cannot be read, is cut off, or its bytes have changed (C601).
    """
    try:
        check_is_file(path)
        reason = damage(path)
    except FileNotFoundError:
        raise damaged(path, "it is missing") from None
    except OSError as e:
        raise damaged(path, (e.strerror or str(e)).lower()) from None
    if reason:
        raise damaged(path, reason)


def check_is_file(path: Path) -> None:
    """Refuse a folder, and a pipe, which would be waited for.

    Raises:
        ManifestError: it is one (C601).
        OSError: it cannot be looked at.
    """
    if kind := odd_kind(path):
        raise damaged(path, f"it is a {kind}")


def check_expansion(path: Path, infos: Iterable[zipfile.ZipInfo]) -> None:
    """Refuse an archive that is made to fill the memory.

    Raises:
        ManifestError: these parts of it hold more than 1 GiB, and 200 times what is stored (C601).
    """
    parts = list(infos)
    unpacked, packed = sum(i.file_size for i in parts), sum(i.compress_size for i in parts)
    if expands_too_far(unpacked, packed):
        raise damaged(path, f"its {packed:,} bytes expand to {unpacked:,}")


def damaged(path: Path, reason: str) -> ManifestError:
    """The error that says what is wrong with a checkpoint's bytes (C601)."""
    return ManifestError(
        finding(
            "C601",
            f"The checkpoint cannot be used: {reason}.",
            place=Place(file=str(path)),
        )
    )
