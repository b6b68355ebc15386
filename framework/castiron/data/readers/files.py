"""Files on disk: found by path or glob, opened through gzip, hashed while they are read."""

from __future__ import annotations

import difflib
import glob
import gzip
import os
import re
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from blake3 import blake3

from castiron.data.files import expands_too_far, odd_kind
from castiron.data.options import Format, ReadOptions
from castiron.data.readers.parts import Parts, PartsDigest, read_into
from castiron.diagnostics import DataError, Finding, Place, finding

_FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".npz": "npz",
    ".txt": "text",
}
_PIECE = 1 << 20
_AS_FILE = "Write what comes out of it to a file: data is read more than once."


def find_files(paths: Sequence[str | Path]) -> list[Path]:
    """The files that paths and globs name, in the given order; the matches of a glob are sorted.

    Raises:
        DataError: a path names no file, a folder, or the same file again; a glob matches nothing.
    """
    found: list[Path] = []
    findings = []
    if not paths:
        findings.append(finding("D130", "", expected="at least one data file", received="an empty list"))
    for given in paths:
        path = Path(given).expanduser()
        if path.is_dir():
            inside = sorted(p.name for p in path.iterdir() if format_of(p) is not None)[:3]
            hint = f"Name a file or a glob: {path / ('*' + Path(inside[0]).suffix)}." if inside else None
            findings.append(
                finding("D130", "", expected="a file", received=f"the folder {path}", remedy=hint)
            )
        elif kind := odd_kind(path):
            findings.append(
                finding("D130", "", expected="a file", received=f"the {kind} {path}", remedy=_AS_FILE)
            )
        elif path.exists():
            found.append(path)
        elif glob.has_magic(str(path)):
            matches = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if Path(p).is_file()]
            if not matches:
                findings.append(
                    finding("D130", "", expected="a file", received=f"no match for {str(path)!r}")
                )
            found += matches
        else:
            findings.append(_no_such_file(path))
    for path in sorted({p for p in found if found.count(p) > 1}):
        findings.append(
            finding("D130", "", expected="every file once", received=f"{path} {found.count(path)} times")
        )
    if findings:
        raise DataError(findings)
    return found


def _no_such_file(path: Path) -> Finding:
    folder = path.parent
    if not folder.is_dir():
        return finding(
            "D130", "", expected="a file", received=f"{path}, whose folder {folder} does not exist"
        )
    near = difflib.get_close_matches(path.name, [p.name for p in folder.iterdir()], n=2)
    hint = f"Did you mean {' or '.join(str(folder / name) for name in near)}?" if near else None
    return finding("D130", "", expected="a file", received=f"{path}, which does not exist", remedy=hint)


def is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def format_of(path: Path) -> Format | None:
    """The format that the suffix stands for, before `.gz`; MNIST's files have none, and are named by idx."""
    name = path.with_suffix("") if is_gzip(path) else path
    if re.search(r"[-.]idx\d-ubyte$", name.name):
        return "idx"
    return _FORMATS.get(name.suffix.lower())


def format_for(path: Path, options: ReadOptions) -> Format:
    """The format of the options, else of the suffix.

    Raises:
        DataError: neither says.
    """
    if found := options.format or format_of(path):
        return found
    if options.delimiter is not None:
        return "csv"
    raise DataError(
        finding(
            "D135",
            "",
            place=Place(file=str(path)),
            expected=f"a suffix that names the format ({', '.join(_FORMATS)}, each also with .gz)",
            received=repr(path.suffix or path.name),
        )
    )


class _Hashed:
    """A binary file that hands every byte it reads to a digest as well."""

    def __init__(self, file: IO[bytes], digest: blake3) -> None:
        self._file = file
        self._digest = digest

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        if piece:
            self._digest.update(piece)
        return piece


class DataFile:
    """One file of data: its bytes (through gzip), its size and its digest."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self.path = path
        self.name = str(path)
        self.size = 0
        self.digest = ""
        """BLAKE3 of the file as it lies on disk, in hexadecimal (`b3sum` prints the same), where wanted."""
        self._wanted = bool(options.digest)
        self._expansion = options.largest_expansion
        self._unpacked = 0

    @contextmanager
    def stream(self) -> Iterator[Callable[[int], bytes]]:
        """A `read(size)` over the unpacked bytes, once from start to end; b"" ends it.

        Raises:
            DataError: the file cannot be opened, its gzip is damaged, or expands too far (D138), or it was
                written to meanwhile (D139).
        """
        with self._opened() as file:
            digest = blake3() if self._wanted else None
            source = cast(IO[bytes], _Hashed(file, digest)) if digest else file
            unpacked = cast(IO[bytes], gzip.GzipFile(fileobj=source)) if is_gzip(self.path) else source
            try:
                yield lambda size: self._read(unpacked, size)
            finally:
                if digest:
                    self.digest = digest.hexdigest()

    @contextmanager
    def seekable(self) -> Iterator[IO[bytes]]:
        """The unpacked file, for formats that are read out of order; a gzip is unpacked to disk first."""
        if is_gzip(self.path):
            with tempfile.TemporaryFile() as unpacked:
                with self.stream() as read:
                    while piece := read(_PIECE):
                        unpacked.write(piece)
                unpacked.seek(0)
                yield unpacked
            return
        with self._opened() as file:
            if not self._wanted:
                yield file
                return
            digest = threading.Thread(target=self._digest_whole, args=(file.fileno(),), daemon=True)
            digest.start()
            try:
                yield file
            finally:
                digest.join()

    @contextmanager
    def parts(self) -> Iterator[Callable[[], Parts]]:
        """Opens the unpacked file as often as one likes, for threads that read large parts of it."""
        if is_gzip(self.path):
            with self.seekable() as unpacked:
                size = os.fstat(unpacked.fileno()).st_size
                yield lambda: Parts(unpacked.fileno(), size, None)
            return
        with self._opened() as file:
            digest = PartsDigest(file.fileno()) if self._wanted else None
            try:
                yield lambda: Parts(file.fileno(), self.size, digest.saw if digest else None)
            finally:
                if digest:
                    try:
                        self.digest = digest.finish()
                    except OSError as error:  # a part of the file that nobody else has read
                        raise self.damaged("a file that can be read", error) from None

    def _digest_whole(self, descriptor: int) -> None:
        digest = blake3()
        read_into(digest, descriptor, 0, None)
        self.digest = digest.hexdigest()

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise DataError(
                finding(
                    "D130",
                    "",
                    expected="a file that can be read",
                    received=f"{self.name} ({error.strerror})",
                )
            ) from None
        with file:
            before = os.fstat(file.fileno())
            self.size, self._unpacked = before.st_size, 0
            try:
                yield file
            except DataError:
                self._check_unchanged(before, file)  # which is why it looks damaged
                raise
            self._check_unchanged(before, file)

    def _check_unchanged(self, before: os.stat_result, file: IO[bytes]) -> None:
        after = os.fstat(file.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise DataError(
                finding(
                    "D139",
                    "",
                    place=Place(file=self.name),
                    expected=f"a file that stays as it is ({before.st_size:,} bytes at first)",
                    received=f"one that was written to meanwhile ({after.st_size:,} bytes in the end)",
                )
            ) from None

    def _read(self, file: IO[bytes], size: int) -> bytes:
        try:
            piece = file.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self.damaged("a complete gzip file", error) from None
        if is_gzip(self.path):
            self._unpacked += len(piece)
            self.check_expansion(self._unpacked)
        return piece

    def check_expansion(self, unpacked: int, packed: int | None = None, what: str = "") -> None:
        """Refuse what grows beyond measure.

        Args:
            unpacked: bytes in memory.
            packed: bytes that they come from; the file's by default.
            what: the part of the file that it is about.

        Raises:
            DataError: they are too many (D138).
        """
        packed = self.size if packed is None else packed
        if expands_too_far(unpacked, packed, self._expansion):
            raise DataError(
                finding(
                    "D138",
                    "",
                    place=Place(file=self.name),
                    expected=f"at most 1 GiB, or {self._expansion} times the {packed:,} bytes stored",
                    received=f"{unpacked:,} bytes{what} or more",
                )
            )

    def damaged(self, expected: str, error: Exception | str) -> DataError:
        """The error that says this file is broken."""
        text = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        return DataError(
            finding(
                "D134", "", place=Place(file=self.name), expected=expected, received=f"a damaged one ({text})"
            )
        )
