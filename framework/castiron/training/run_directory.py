"""The run directory: everything a run leaves behind. Files are written whole or not at all.

`runs/<recipe>/<time or name>/`: `config.yaml` (resolved), `plan.json`, `data.json`, `audit.json`,
`events.out.tfevents.*`, `metrics.jsonl`, `checkpoints/`, `incidents/step-N/`, `summary.json`,
`environment.json`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from castiron.data.files import append_whole, odd_kind, written_atomically
from castiron.diagnostics import Place, RunError, finding
from castiron.training.suggestions import did_you_mean, near
from castiron.training.writing import finite, write_text, written

if TYPE_CHECKING:
    from castiron.training.backend import Outcome
    from castiron.training.config import RunConfig

CONFIG = "config.yaml"
PLAN = "plan.json"
DATA = "data.json"
AUDIT = "audit.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
ENVIRONMENT = "environment.json"
CHECKPOINTS = "checkpoints"
INCIDENTS = "incidents"
ASSETS = "assets"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,99}")


class RunDirectory:
    """A run's folder. Make one with `create`, find one with `open`.

    Failures of the file system are raised as RunError (X819), which says the file and the reason.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metrics: BinaryIO | None = None

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    # --- making and finding ------------------------------------------------------------------------

    @classmethod
    def create(cls, runs: Path, recipe: str, name: str | None = None) -> RunDirectory:
        """A new, empty run directory. Two processes never get the same one.

        Args:
            runs: the folder of all runs.
            recipe: name of the recipe.
            name: of the run; the time (UTC) by default.

        Raises:
            RunError: the name is taken (X817), is no name for a folder (X820), or nothing can be written
                (X819).
        """
        if name is not None and not _NAME.fullmatch(name):
            raise RunError(
                finding(
                    "X820",
                    "The run's name cannot be that of a folder.",
                    received=f"'{name}'",
                    expected="letters, digits, '.', '_', '-', '+' or '=', 100 at most",
                    remedy="Choose another --name.",
                )
            )
        parent = Path(runs) / recipe
        stem = name or datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        with written(parent):
            parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, 1000):
            path = parent / (stem if attempt == 1 else f"{stem}-{attempt}")
            try:
                with written(path):
                    path.mkdir()
            except FileExistsError:
                if name is None:
                    continue
                if not _only_begun(path):
                    raise RunError(_taken(path, recipe, name)) from None
            run = cls(path)
            with written(path):
                (path / CHECKPOINTS).mkdir(exist_ok=True)
            return run
        raise RunError(finding("X819", "No free name was found.", place=Place(file=str(parent))))

    @classmethod
    def open(cls, run: str | Path, runs: Path) -> RunDirectory:
        """An existing run: a path, or below `runs` `<recipe>/<name>`, a `<name>` that only one recipe has, or
        `<recipe>` for its latest.

        Raises:
            RunError: there is none (X818), with near misses; or what a run must have is missing.
        """
        for path in (Path(run), Path(runs) / run):
            if (path / CONFIG).is_file():
                check_contained(path)
                return cls(path)
            if path.is_file() and path.name in (CONFIG, SUMMARY):
                return cls.open(path.parent, runs)
        for path in (Path(runs) / run, Path(run)):
            if path.is_dir() and (last := latest(path)) is not None:
                check_contained(last.path)
                return last
        named = [r for r in all_runs(runs) if r.path.name == str(run)]
        if len(named) == 1:
            check_contained(named[0].path)
            return named[0]
        if Path(run).is_dir() or (Path(runs) / run).is_dir():
            folder = Path(run) if Path(run).is_dir() else Path(runs) / run
            raise RunError(
                finding(
                    "X818", f"This folder is no run: '{CONFIG}' is missing.", place=Place(file=str(folder))
                )
            )
        known = [f"{r.path.parent.name}/{r.path.name}" for r in all_runs(runs)]
        if named:
            remedy = f"Several recipes have a run of this name: {', '.join(r.name for r in named)}."
        else:
            remedy = did_you_mean(near(str(run), known))
        if not remedy and known:
            remedy = f"The latest runs are {', '.join(known[-3:])}."
        raise RunError(
            finding(
                "X818",
                "There is no such run.",
                expected=f"a run's folder, or <recipe>/<name> below '{runs}'",
                received=f"'{run}'",
                remedy=remedy or None,
            )
        )

    # --- names -------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """`<recipe>/<name>`, as `--resume` takes it."""
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def incidents(self) -> Path:
        return self.path / INCIDENTS

    @property
    def assets(self) -> Path:
        """What the recipe learned from its data (a vocabulary), and embedded data."""
        return self.path / ASSETS

    def checkpoint(self, which: Literal["best", "last"] = "best") -> Path:
        """The best checkpoint, or the last; the other one where this one is missing.

        Raises:
            RunError: the run has none.
        """
        order = ("best", "last") if which == "best" else ("last", "best")
        for stem in order:
            if found := sorted(self.checkpoints.glob(f"{stem}.*")):
                return found[0]
        raise RunError(
            finding(
                "X818",
                "The run has no checkpoint.",
                place=Place(file=str(self.checkpoints)),
                remedy="Train it first; a run that ended before its first checkpoint starts anew.",
            )
        )

    # --- files -------------------------------------------------------------------------------------

    def write_text(self, name: str, text: str) -> Path:
        """Write a file whole: under a temporary name, synced, then renamed."""
        return write_text(self.path / name, text)

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON file whole. NaN and infinities are written as null: JSON has none."""
        text = json.dumps(finite(value), indent=2, ensure_ascii=False, default=str, allow_nan=False)
        return self.write_text(name, text + "\n")

    def read_json(self, name: str) -> Any:
        """The content of a JSON file.

        Raises:
            RunError: it is missing (X818) or damaged (X822).
        """
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            place = Place(file=str(path))
            raise RunError(finding("X818", f"The run has no '{name}'.", place=place)) from None
        except (OSError, ValueError, RecursionError) as e:
            raise RunError(
                finding("X822", f"The file cannot be read: {e}", place=Place(file=str(path)))
            ) from e

    def read_bytes(self, name: str) -> bytes | None:
        """A file as it is; None where it is missing."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def put_back(self, name: str, content: bytes | None) -> None:
        """Make a file what `read_bytes` gave."""
        path = self.path / name
        if content is None:
            path.unlink(missing_ok=True)
            return
        with written(path), written_atomically(path) as file:
            file.write(content)

    def write_config(self, config: RunConfig) -> Path:
        """`config.yaml`: every default written out; it runs again as it is."""
        from castiron.training.yaml_writer import as_yaml

        header = f"The resolved config of the run {self.name}, every default written out."
        return self.write_text(CONFIG, as_yaml(config.resolved(), header))

    def write_summary(self, outcome: Outcome, config: RunConfig) -> Path:
        """`summary.json`, from the outcome."""
        record = asdict(outcome)
        del record["findings"], record["incident"]
        record["incident_folder"] = str(outcome.incident_folder) if outcome.incident_folder else None
        record["checkpoint"] = str(outcome.checkpoint) if outcome.checkpoint else None
        record["policy"] = str(config.precision)
        record["recipe"], record["seed"] = config.recipe, config.seed
        if outcome.findings:
            record["findings"] = [f.as_dict() for f in outcome.findings]
        return self.write_json(SUMMARY, record)

    def summary(self) -> dict[str, Any]:
        """The content of `summary.json`; `{"status": "running"}` while there is none."""
        if not (self.path / SUMMARY).exists():
            return {"status": "running"}
        summary = self.read_json(SUMMARY)
        if not isinstance(summary, dict):
            place = Place(file=str(self.path / SUMMARY))
            raise RunError(finding("X822", "The file is no summary of a run.", place=place))
        return summary

    # --- metrics -----------------------------------------------------------------------------------

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a row to `metrics.jsonl`. It is in the file when this returns, unless the machine fails."""
        with written(self.path / METRICS):
            if self._metrics is None:
                self._metrics = open(self.path / METRICS, "ab", buffering=0)  # noqa: SIM115
            if not os.fstat(self._metrics.fileno()).st_nlink:
                raise OSError(errno.ENOENT, "it was removed")  # rows would go nowhere
            line = json.dumps(finite(row), default=float, allow_nan=False) + "\n"
            append_whole(self._metrics, line.encode("utf-8"))

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`; a torn last line (of a killed run) is passed over."""
        path = self.path / METRICS
        if not path.exists():
            return []
        rows, lines = [], path.read_text(encoding="utf-8", errors="replace").split("\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            whole = number < len(lines)  # a whole line ends with a line break
            if isinstance(row, dict) and _is_number(row.get("step", 0)):
                rows.append(row)
            elif whole:
                place = Place(file=str(path), line=number)
                message = "The line is not JSON." if row is None else "The line is no row of metrics."
                raise RunError(finding("X822", message, place=place)) from None
        return rows

    def trim_metrics(self, step: int) -> None:
        """Drop what a resumed run writes again: rows later than this step, those of the test, a torn line."""
        self.close()
        if (self.path / METRICS).exists():
            kept = [
                r
                for r in self.metrics()
                if r.get("step", 0) <= step and not any(name.startswith("test/") for name in r)
            ]
            self.write_text(METRICS, "".join(json.dumps(r) + "\n" for r in kept))

    def close(self) -> None:
        """Close `metrics.jsonl`; it is opened again when a row is logged."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None

    # --- whole -------------------------------------------------------------------------------------

    @contextmanager
    def claimed(self) -> Iterator[RunDirectory]:
        """Hold the run for this process, so that no second one writes into it.

        Raises:
            RunError: another process holds it (X817).
        """
        import fcntl

        path = self.path / ".lock"
        with written(path):
            file = open(path, "a+")  # noqa: SIM115
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = "Another process is writing into this run."
                raise RunError(
                    finding(
                        "X817", message, place=Place(file=str(self.path)), remedy="Wait until it has ended."
                    )
                ) from None
            yield self
        finally:
            self.close()
            file.close()

    def discard_if_unused(self) -> bool:
        """Remove a run that has trained nothing (no metrics, no checkpoint, no incident), so that its name is
        free again."""
        kept = [self.path / METRICS, *self.checkpoints.glob("*"), *self.incidents.glob("*")]
        if any(p.exists() for p in kept):
            return False
        shutil.rmtree(self.path, ignore_errors=True)
        return True


def check_contained(run: Path) -> None:
    """Refuse a run in whose folder something stands that is not its own: what is appended to a link ends up
    in the file that it leads to, and a pipe is waited for.

    Raises:
        RunError: a link leads out of the folder, or an entry is neither file nor folder (X822).
    """
    whole = run.resolve()
    for path in (*run.glob("*"), *run.glob(".lock"), *run.glob(f"{CHECKPOINTS}/*"), *run.glob(f"{ASSETS}/*")):
        reason = None
        if path.is_symlink() and not path.resolve().is_relative_to(whole):
            reason = "it is a link that leads out of the run's folder"
        elif (kind := odd_kind(path)) not in (None, "folder"):
            reason = f"it is a {kind}"
        if reason:
            remedy = "Put the file itself there. A run that somebody gave you: ask why."
            place = Place(file=str(path))
            raise RunError(finding("X822", f"The file is not used: {reason}.", place=place, remedy=remedy))


def _only_begun(path: Path) -> bool:
    """Whether a process was killed, or is, between making a run's folder and writing its config. (Of two that
    take it, `claimed` lets one have it.)"""
    if not path.is_dir() or (path / CONFIG).exists():
        return False
    inside = [p for p in path.rglob("*") if p != path / CHECKPOINTS and not p.name.startswith(".")]
    return not inside


def all_runs(runs: Path) -> list[RunDirectory]:
    """Every run below this folder, oldest first."""
    found = []
    for config in Path(runs).glob(f"*/*/{CONFIG}"):
        try:
            found.append((config.stat().st_mtime_ns, str(config), RunDirectory(config.parent)))
        except OSError:  # removed meanwhile
            continue
    return [run for _, _, run in sorted(found, key=lambda f: f[:2])]


def latest(recipe_folder: Path) -> RunDirectory | None:
    """The run below `runs/<recipe>` that was started last."""
    found = [r for r in all_runs(recipe_folder.parent) if r.path.parent.name == recipe_folder.name]
    return found[-1] if found else None


def _taken(path: Path, recipe: str, name: str) -> Any:
    return finding(
        "X817",
        "There is a run of this name already.",
        place=Place(file=str(path)),
        remedy=f"Choose another --name, or continue it: castiron train {recipe} --resume {recipe}/{name}",
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
