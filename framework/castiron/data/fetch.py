"""Fetching data sets into the user's cache, each file whole and as pinned, or not at all."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pooch
import requests

from castiron.data.catalogue import CATALOGUE, RemoteFile, RemoteSet
from castiron.data.files import sha256_of
from castiron.diagnostics import DataError, Place, finding

CACHE_VARIABLE = "CASTIRON_CACHE"
_TIMEOUT = 30  # seconds without a byte


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the download of one file is."""

    file: str
    done: int
    total: int
    """Bytes."""

    def __str__(self) -> str:
        return f"{self.file}: {self.done / 1e6:.1f} of {self.total / 1e6:.1f} MB"


@dataclass(frozen=True, slots=True)
class Fetched:
    """A data set that lies in the cache."""

    name: str
    folder: Path
    files: dict[str, Path]
    """By split: train, validation, test."""

    @property
    def arguments(self) -> list[str]:
        """`data.train=… data.validation=… data.test=…`: what `castiron train CONFIG` takes."""
        return [f"data.{split}={path}" for split, path in self.files.items()]


def cache_folder() -> Path:
    """The folder of $CASTIRON_CACHE, else the user's cache folder (Linux: ~/.cache/castiron)."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else Path(pooch.os_cache("castiron"))


def fetch(
    name: str,
    *,
    cache: str | Path | None = None,
    base: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Fetched:
    """The data set `name` of the catalogue, downloaded where the cache does not have it.

    Files in the cache are used if their SHA-256 is the pinned one, without any network. Others are downloaded
    to a temporary name, and take their own only when whole and as pinned.

    Args:
        cache: Folder of the cache. Default: `cache_folder()`.
        base: Address to fetch from in place of the catalogue's (a mirror); the pinned digests stay.
        progress: Called as bytes arrive.

    Raises:
        DataError: D160 unknown name; D161 address not reached, or cut off; D162 another file than the
            pinned one. Nothing of a failed download is kept.
    """
    remote = CATALOGUE.get(name)
    if remote is None:
        near = difflib.get_close_matches(name, CATALOGUE, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise DataError(
            finding(
                "D160",
                f"There is no data set '{name}' to fetch.{hint}",
                expected=" or ".join(CATALOGUE),
                received=repr(name),
            )
        )
    folder = Path(cache if cache is not None else cache_folder()) / "data" / name
    base = (remote.base if base is None else base).rstrip("/")
    store = pooch.create(
        path=folder,
        base_url=base + "/",
        registry={file.path: f"sha256:{file.sha256}" for file in remote.files.values()},
    )
    files = {
        split: _fetched(store, remote, file, folder / file.path, f"{base}/{file.path}", progress)
        for split, file in remote.files.items()
    }
    return Fetched(name, folder, files)


def _fetched(
    store: Any,
    remote: RemoteSet,
    file: RemoteFile,
    path: Path,
    address: str,
    progress: Callable[[Progress], None] | None,
) -> Path:
    def download(url: str, target: str, store: Any) -> None:
        bar = _Bar(file, progress) if progress else False
        pooch.HTTPDownloader(progressbar=bar, timeout=_TIMEOUT)(url, target, store)
        if (digest := sha256_of(target)) != file.sha256:
            raise _wrong(file, address, digest, os.path.getsize(target))

    try:
        with _quiet():
            store.fetch(file.path, downloader=download)
    except requests.exceptions.RequestException as error:
        if error.response is not None:
            error.response.close()  # pooch streams, and leaves the connection of a refused request open
        raise _not_reached(remote, path, address, _reason(error)) from error
    except OSError as error:
        raise _not_reached(remote, path, address, f"{path.parent}: {error.strerror or error}") from error
    return path


class _Bar:
    """What pooch drives as a progress bar. Totals are the catalogue's: headers may count compressed bytes."""

    def __init__(self, file: RemoteFile, report: Callable[[Progress], None]) -> None:
        self.total = file.bytes
        self._file, self._report, self._done = file, report, 0

    def update(self, count: int) -> None:
        self._done = min(self._done + count, self._file.bytes)
        self._report(Progress(self._file.path, self._done, self._file.bytes))

    def reset(self) -> None:
        """pooch resets a bar and fills it at the end of a download; ours is full by then."""
        self._done = self._file.bytes

    def close(self) -> None:
        self._done = self._file.bytes


@contextmanager
def _quiet() -> Iterator[None]:
    """Without pooch's own lines: progress is reported, and failures are findings."""
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _reason(error: requests.exceptions.RequestException) -> str:
    if error.response is not None:
        return f"HTTP {error.response.status_code} {error.response.reason}".rstrip()
    if isinstance(error, requests.exceptions.Timeout):
        return f"no answer for {_TIMEOUT} seconds"
    if isinstance(error, requests.exceptions.ChunkedEncodingError | requests.exceptions.ContentDecodingError):
        return "a part of the file; then the connection was closed"
    if isinstance(error, requests.exceptions.ConnectionError):
        inner = str(error)
        for sign, reason in _SIGNS.items():
            if sign in inner:
                return reason
        return f"no connection ({inner})"
    return f"{type(error).__name__} ({error})"


_SIGNS = {
    "Name or service not known": "no address of this name (offline?)",
    "Temporary failure in name resolution": "no address of this name (offline?)",
    "nodename nor servname": "no address of this name (offline?)",
    "getaddrinfo failed": "no address of this name (offline?)",
    "NameResolutionError": "no address of this name (offline?)",
    "Connection refused": "connection refused",
    "Network is unreachable": "network unreachable (offline?)",
    "IncompleteRead": "a part of the file; then the connection was closed",
    "Connection reset": "connection reset",
    "RemoteDisconnected": "no answer; the connection was closed",
}


def _not_reached(remote: RemoteSet, path: Path, address: str, received: str) -> DataError:
    return DataError(
        finding(
            "D161",
            f"The data set '{remote.name}' could not be fetched; nothing incomplete was kept.",
            place=Place(file=address),
            expected="the whole file",
            received=received,
            remedy=f"Check the network and fetch again, or put the file at {path} yourself, or give files by "
            "path (data.train=…).",
        )
    )


def _wrong(file: RemoteFile, address: str, digest: str, size: int) -> DataError:
    return DataError(
        finding(
            "D162",
            "The file is not the one that is pinned; it was deleted.",
            place=Place(file=address),
            expected=f"SHA-256 {file.sha256} ({file.bytes:,} bytes)",
            received=f"{digest} ({size:,} bytes)",
        )
    )
