"""How findings read: one line, JSON, a terminal; and the errors that carry them."""

from __future__ import annotations

import io
import json
import pickle

import pytest
from rich.console import Console

from castiron import diagnostics
from castiron.diagnostics import CastironError, ConfigError, DataError, Finding, Place, RunError, finding
from castiron.diagnostics.render import as_json, by_severity, print_findings

CELL = finding(
    "X802",
    "",
    place=Place(file="reviews.csv", line=813, column=3),
    expected="float32 for field 'rating'",
    received="'N/A' (text)",
    remedy="Declare what a missing value becomes.",
)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (Place(), ""),
        (Place(file="a.yaml"), "a.yaml"),
        (Place(file="a.yaml", line=3), "a.yaml:3"),
        (Place(file="a.yaml", line=3, column=7), "a.yaml:3:7"),
        (Place(file="a.yaml", line=3, key="optimizer.lr"), "a.yaml:3, key 'optimizer.lr'"),
        (Place(field="rating"), "field 'rating'"),
        (Place(module="encoder.0"), "layer 'encoder.0'"),
        (Place(module=""), "the model itself"),
        (Place(module="head", op="addmm", phase="backward"), "layer 'head', addmm (backward)"),
        (Place(op="addmm"), "addmm"),
    ],
)
def test_places(place: Place, text: str) -> None:
    assert str(place) == text


def test_a_sentence() -> None:
    assert (
        CELL.sentence() == "Expected float32 for field 'rating'. Received 'N/A' (text) at reviews.csv:813:3."
    )
    assert str(CELL) == f"X802 {CELL.sentence()} Declare what a missing value becomes."


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (finding("X801", "There is no such key"), "There is no such key."),
        (finding("X801", "Why?"), "Why?"),
        (finding("X801", "No.", place=Place(key="a")), "No. At key 'a'."),
        (finding("X801", "", received="7"), "Received 7."),
        (finding("X801", "No.", count=1234), "No. (1,234 times)"),
    ],
)
def test_parts_that_are_missing_leave_no_trace(made: Finding, sentence: str) -> None:
    assert made.sentence() == sentence


def test_json() -> None:
    (record,) = json.loads(as_json([CELL]))
    assert record == {
        "code": "X802",
        "message": "",
        "severity": "error",
        "place": {"file": "reviews.csv", "line": 813, "column": 3},
        "expected": "float32 for field 'rating'",
        "received": "'N/A' (text)",
        "remedy": "Declare what a missing value becomes.",
        "count": 1,
        "evidence": {},
    }


def test_json_of_evidence_that_json_does_not_know() -> None:
    (record,) = json.loads(as_json([finding("X801", "ü", path=Place(file="x"), n=(1, 2))]))
    assert record["evidence"] == {"path": "x", "n": [1, 2]}
    assert "ü" in as_json([finding("X801", "ü")])


def test_errors_come_first() -> None:
    found = [finding("X801", str(i), severity=s) for i, s in enumerate(("info", "error", "warning", "error"))]  # type: ignore[arg-type]
    assert [f.message for f in by_severity(found)] == ["1", "3", "2", "0"]


def printed(*findings: Finding, width: int = 60, colour: bool = False) -> str:
    out = io.StringIO()
    print_findings(
        findings,
        Console(file=out, width=width, force_terminal=colour, color_system="standard" if colour else None),
    )
    return out.getvalue()


def test_on_a_terminal() -> None:
    told = finding("X801", "There is no such key.", severity="warning", remedy="")
    assert printed(told, CELL) == (
        "error X802  Expected float32 for field 'rating'. Received 'N/A' (text) at reviews.csv:813:3.\n"
        "  → Declare what a missing value becomes.\n"
        "warning X801  There is no such key.\n"
    )


def test_markup_in_a_message_is_text() -> None:
    assert "[bold]x[/bold] [0]" in printed(finding("X801", "[bold]x[/bold] [0]"))


def test_colours() -> None:
    assert "\x1b[1;31merror X802" in printed(CELL, colour=True)
    assert "\x1b[1;33mwarning" in printed(finding("X801", "x", severity="warning"), colour=True)


# --- errors -----------------------------------------------------------------------------------------------

ERRORS = [e for e in vars(diagnostics).values() if isinstance(e, type) and issubclass(e, CastironError)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: e.__name__)
def test_an_error_carries_its_findings_everywhere(error: type[CastironError]) -> None:
    made = error([CELL, finding("X801", "No.")])
    back = pickle.loads(pickle.dumps(made))
    assert type(back) is error
    assert back.findings == made.findings
    assert str(back).splitlines() == [str(f) for f in made.findings]
    assert made.exit_code in (1, 2)
    assert error(CELL).findings == (CELL,)


def test_exit_codes() -> None:
    codes = {e.__name__: e.exit_code for e in ERRORS if e.exit_code != 2}
    assert codes == {"AuditError": 1, "NumericIncident": 1}
    assert issubclass(diagnostics.PlanError, ConfigError)
    assert issubclass(diagnostics.HardwareError, ConfigError)
    assert not issubclass(DataError, ConfigError)
    assert not issubclass(RunError, ConfigError)
