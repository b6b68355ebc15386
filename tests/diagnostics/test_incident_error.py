"""NumericIncident: findings for people, and the record of what happened for programs."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import castiron
from castiron.diagnostics import NumericIncident, finding
from castiron.training.incident import Incident

FOUND = finding("N500", "The step is not finite")
RECORD = Incident(
    code="N500", step=3, epoch=1, phase="forward", event="domain", message="log met 0", policy="float32"
)


def test_it_carries_the_record_and_its_folder() -> None:
    error = NumericIncident(FOUND, incident=RECORD, path="runs/a/b/incidents/step-3")
    assert error.incident is RECORD
    assert error.path == Path("runs/a/b/incidents/step-3")
    assert error.findings == (FOUND,)
    assert str(error) == str(FOUND)
    assert castiron.NumericIncident is NumericIncident


def test_without_a_record_both_are_none() -> None:
    error = NumericIncident([FOUND, FOUND])
    assert (error.incident, error.path, error.exit_code) == (None, None, 1)


def test_it_travels_between_processes_whole() -> None:
    error = NumericIncident(FOUND, incident=RECORD, path=Path("x"))
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (other.findings, other.incident, other.path) == ((FOUND,), RECORD, Path("x"))
        assert str(other) == str(error)
