"""The page of broken trainings is that of the trainings that are tested."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "cases"))

import broken_functions  # noqa: E402
import broken_layers  # noqa: E402
import broken_steps  # noqa: E402
import healthy_trainings  # noqa: E402
from case_kit import BROKEN, HEALTHY  # noqa: E402


def test_every_case_is_on_the_page_as_it_is_tested() -> None:
    page = (ROOT / "docs" / "cases.md").read_text(encoding="utf-8")
    assert broken_functions.__doc__
    assert broken_layers.__doc__
    assert broken_steps.__doc__
    assert healthy_trainings.__doc__
    sections = {part.split("\n", 1)[0]: part for part in page.split("\n## ")[1:]}
    for case in BROKEN.values():
        section = sections[case.title]
        assert case.source.strip() in section, "run: python scripts/cases_page.py"
        assert f"\n{case.expected.code} " in section
        assert "remedy" in section
    for name in HEALTHY:
        assert name.replace("_", " ") in sections["What is left in peace"]
