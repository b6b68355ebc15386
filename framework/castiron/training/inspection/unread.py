"""A file that cannot be read, whatever its library raises."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from castiron.training.checkpoint_file import damaged

_RAISED = (zipfile.BadZipFile, zlib.error, ValueError, RuntimeError, NotImplementedError, EOFError, KeyError)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what is raised while a file is read into a ManifestError (C601)."""
    try:
        yield
    except _RAISED as e:
        raise damaged(path, str(e).rstrip(".") or type(e).__name__) from None
    except OSError as e:
        raise damaged(path, (e.strerror or str(e)).lower()) from None
