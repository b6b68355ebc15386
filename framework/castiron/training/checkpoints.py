"""The checkpoints of a run: older ones kept under the next name, the newest that is whole found again."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from castiron.diagnostics import CastironError, Finding, ManifestError, finding
from castiron.training.checkpoint_file import PART, check_intact
from castiron.training.manifest import read_manifest
from castiron.training.run_directory import RunDirectory

_STATE = re.compile(r"(last|best)(?:-(\d+))?\.(ckpt|safetensors)")


def rotate(path: Path, keep: int) -> None:
    """Move `last.ckpt` on to `last-2.ckpt`, that one to `last-3.ckpt` …, and drop those beyond `keep`.

    `path` itself stays: it gets a second name, and is replaced by what is written next. So there is always a
    whole one of that name.
    """
    older = numbered(path)
    for number, file in sorted(older.items(), reverse=True):
        if number >= keep:
            file.unlink(missing_ok=True)
        else:
            os.replace(file, _name(path, number + 1))
    if keep > 1 and path.exists():
        second = _name(path, 2)
        second.unlink(missing_ok=True)
        try:
            os.link(path, second)
        except OSError:  # a file system without links
            os.replace(path, second)


def numbered(path: Path) -> dict[int, Path]:
    """Number → file, of the older ones of a name."""
    found = {}
    for file in path.parent.glob(f"{path.stem}-*{path.suffix}"):
        number = file.stem.removeprefix(f"{path.stem}-")
        if number.isdecimal() and len(number) < 5:
            found[int(number)] = file
    return found


def _name(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def sweep(run: RunDirectory) -> None:
    """Remove what a killed process had half written, or kept for itself alone. Call it while the run is
    claimed."""
    for folder in (run.path, run.checkpoints):
        for pattern in (f".*{PART}", ".*.tmp", "rollback-*.ckpt", "rollback-*.safetensors", "rollback-*.tmp"):
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)
    for part in run.incidents.glob(f".*{PART}"):
        shutil.rmtree(part, ignore_errors=True)


def to_resume(run: RunDirectory, tell: Callable[[Finding], None] = lambda found: None) -> Path | None:
    """The newest checkpoint of a run that is whole; None where it has none at all.

    Args:
        tell: gets a warning for each that is passed over (C615).

    Raises:
        ManifestError: every one is damaged: a finding for each (C601).
    """
    files = [p for p in run.checkpoints.glob("*") if _STATE.fullmatch(p.name)]
    whole: list[tuple[int, bool, int, Path]] = []
    broken: list[tuple[Path, CastironError]] = []
    for path in files:
        try:
            check_intact(path)
            manifest = read_manifest(path)
        except ManifestError as e:
            broken.append((path, e))
            continue
        match = _STATE.fullmatch(path.name)
        assert match is not None
        step = -1 if manifest is None or manifest.step is None else manifest.step
        whole.append((step, match[1] == "last", -int(match[2] or 1), path))
    if not whole and broken:
        raise ManifestError([f for _, e in broken for f in e.findings])
    if not whole:
        return None
    step, _, _, newest = max(whole)
    for path, error in sorted(broken, key=lambda b: b[0].name):
        tell(
            finding(
                "C615",
                f"A damaged checkpoint is passed over: {_reason(error)}",
                place=error.findings[0].place,
                received=f"'{path.name}'; '{newest.name}' is used"
                + (f", of step {step:,}" if step >= 0 else ""),
            )
        )
    return newest


def _reason(error: CastironError) -> str:
    return error.findings[0].message.partition(": ")[2]
