"""What holds of every rule, and of every code that the source says."""

from __future__ import annotations

import ast
import difflib
import re
from collections import Counter
from pathlib import Path

import pytest

import castiron
from castiron.diagnostics import FAMILIES, RULES, Place, Rule, finding, rule
from castiron.diagnostics.catalogue import (
    checkpoints,
    config,
    data,
    distributed,
    flow,
    flow_keras,
    hardware,
    health,
    layers,
    numerics,
    scaling,
)
from castiron.diagnostics.finding import SEVERITIES

HOMES = {
    "D1": data, "L2": layers, "F3": flow, "S4": scaling, "N5": numerics, "C6": checkpoints, "H7": hardware,
    "X8": config,
}  # fmt: skip
every_rule = pytest.mark.parametrize("of", list(RULES.values()), ids=lambda r: r.code)


def test_codes_and_names_are_unique() -> None:
    listed = [r for module in (*HOMES.values(), flow_keras, health, distributed) for r in module.RULES]
    assert [c for c, n in Counter(r.code for r in listed).items() if n > 1] == []
    assert [c for c, n in Counter(r.name for r in listed).items() if n > 1] == []
    assert len(listed) == len(RULES)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_has_its_file(family: str) -> None:
    assert all(r.code.startswith(family) for r in HOMES[family].RULES)
    assert all(r.code.startswith("N5") for r in health.RULES)
    assert all(r.code.startswith("F3") for r in flow_keras.RULES)


@every_rule
def test_a_rule_says_all_that_a_reader_needs(of: Rule) -> None:
    assert re.fullmatch(r"[A-Z]\d{3}", of.code)
    assert of.code[:2] in FAMILIES
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+|[a-z0-9]+", of.name)
    assert of.severity in SEVERITIES
    for text in (of.what, of.why, of.remedy):
        assert text == text.strip()
        assert text[:1].isupper() or text[:1] in "`'\"" or text.split()[0].lower() == text.split()[0]
        assert text.endswith((".", ")", "`", "?"))
        assert "  " not in text
    assert bool(of.bad) == bool(of.good) or not of.good, "a mended example without what it mends"


SOURCE = Path(castiron.__file__).parent


def said() -> dict[str, set[str]]:
    """Code → files that make findings of it."""
    found: dict[str, set[str]] = {}
    for path in SOURCE.rglob("*.py"):
        if path.parent.name == "rules":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and re.fullmatch("[A-Z][1-8][0-9]{2}", node.value)
            ):
                found.setdefault(node.value, set()).add(str(path.relative_to(SOURCE)))
    return found


def test_every_code_that_is_said_is_in_the_catalogue() -> None:
    assert {code: files for code, files in said().items() if code not in RULES} == {}


def test_every_rule_is_said_somewhere() -> None:
    """A rule that nothing raises is a promise that nobody keeps."""
    assert sorted(set(RULES) - set(said())) == []


# --- looking up, and making findings ----------------------------------------------------------------------


def test_a_code_is_found_in_any_case() -> None:
    assert rule("x801") is RULES["X801"]


def test_an_unknown_code_lists_near_misses() -> None:
    near = difflib.get_close_matches("X899", RULES, n=3)
    with pytest.raises(KeyError) as caught:
        rule("X899")
    assert (
        caught.value.args[0]
        == f"Expected a rule code such as D101. Received 'X899'. Did you mean {', '.join(near)}?"
    )


def test_severity_and_remedy_are_the_rules_unless_given() -> None:
    of = RULES["X801"]
    plain = finding("X801", "There is no such key.")
    assert (plain.severity, plain.remedy, plain.place) == (of.severity, of.remedy, Place())
    told = finding("X801", "x", severity="info", remedy="Do this.", count=3, rows=[1])
    assert (told.severity, told.remedy, told.count, told.evidence) == ("info", "Do this.", 3, {"rows": [1]})
    assert finding("X801", "x", remedy="").remedy == ""
