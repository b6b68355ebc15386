"""What is written to disk: failures told by their reason, what JSON can hold, renames that last."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from castiron.data.files import written_atomically
from castiron.diagnostics import Place, RunError, finding


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Turns failures of the file system into a RunError; FileExistsError passes."""
    try:
        yield
    except FileExistsError:
        if path.exists() and not path.is_dir():
            message = "A file stands where a folder is to be made."
            raise RunError(finding("X819", message, place=Place(file=str(path)))) from None
        raise
    except OSError as e:
        reason = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EROFS: "the file system is read-only",
            errno.EACCES: "permission is denied",
            errno.EPERM: "permission is denied",
            errno.ENOENT: "the folder does not exist",
            errno.ENOTDIR: "a part of the path is a file",
            errno.ENAMETOOLONG: "the name is too long",
        }.get(e.errno or 0, e.strerror or str(e))
        message = f"The file cannot be written: {reason}."
        raise RunError(finding("X819", message, place=Place(file=str(path)))) from e


def write_text(path: Path, text: str) -> Path:
    """Write a file whole: under a temporary name, synced, then renamed.

    Raises:
        RunError: it cannot be written (X819).
    """
    with written(path), written_atomically(path) as file:
        file.write(text.encode("utf-8"))
    return path


def finite(value: Any) -> Any:
    """The value with null for NaN and infinities: JSON has none."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def timestamp() -> str:
    """Now, UTC, as ISO 8601."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")


def fsync_folder(folder: Path) -> None:
    """Make a rename in this folder last through a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
