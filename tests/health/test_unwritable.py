"""Files of a run's health that cannot be written: told once, training goes on, and nothing is lost that need
not be."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from castiron.diagnostics import Finding, finding
from castiron.health import table
from castiron.health.recorder import ADVICE, HealthRecorder, read_advice
from castiron.health.snapshot import Snapshot
from castiron.health.statistics import measure
from castiron.health.table import FILE, HealthTable
from castiron.health.writing import Unwritable

MADE = measure(np.linspace(-1, 1, 9, dtype=np.float32), "float32", ())


def snapshot(step: int, layers: int = 1000) -> Snapshot:
    return Snapshot(step, groups={("activations", f"layer {n}"): MADE for n in range(layers)})


class Disk:
    """A disk that is full until there is `room`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room, self.tries = False, 0
        real = table.written_atomically

        @contextmanager
        def written(path: Path) -> Iterator[Any]:
            self.tries += 1
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with real(path) as file:
                yield file

        monkeypatch.setattr(table, "written_atomically", written)


def test_rows_wait_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, told = Disk(monkeypatch), list[Finding]()
    with HealthRecorder(tmp_path, on_problem=told.append) as recorder:
        for step in range(1, 11):
            recorder.add(snapshot(step))
        assert disk.tries == 3  # at 2,000, 4,000 and 8,000 rows
        disk.room = True
    (problem,) = told
    assert str(problem) == (
        f"X819 Rows of health cannot be written: No space left on device. At {tmp_path / FILE}. "
        "Make room or grant access; training goes on, and rows are kept in memory until then."
    )
    assert problem.severity == "warning"
    assert [s.step for s in table.read(tmp_path)] == list(range(1, 11))


def test_what_waits_is_bounded_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    monkeypatch.setattr(table, "_WAITING", 3000)
    written = HealthTable(tmp_path, unwritable=Unwritable(lambda f: None))
    for step in range(1, 11):
        written.add(snapshot(step))
    assert written.dropped == 7000
    disk.room = True
    written.close()
    assert [s.step for s in table.read(tmp_path)] == [8, 9, 10]


def test_a_damaged_table_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"PAR1 and then nothing of that kind PAR1")
    with pytest.warns(
        RuntimeWarning, match="X819 Rows of health cannot be written: what is there is damaged"
    ):
        written = HealthTable(tmp_path, resumed_at=5)
    assert (tmp_path / f"damaged-{FILE}").read_bytes().startswith(b"PAR1 and")
    written.add(snapshot(6, 1))
    written.close()
    assert [s.step for s in table.read(tmp_path)] == [6]


def test_a_folder_that_is_gone_ends_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    told: list[Finding] = []
    with HealthRecorder(folder, on_problem=told.append) as recorder:
        recorder.say([finding("N520", "one.")], 1)
        assert [step for step, _ in read_advice(folder)] == [1]
        shutil.rmtree(folder)
        recorder.say([finding("N520", "two.")], 2)
        recorder.say([finding("N520", "three.")], 3)
    assert [f.place.file for f in told] == [str(folder / ADVICE)]
