"""Links between pages lead somewhere: the file is there, and so is the heading."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from pages import DOCS, PAGES, ROOT, name, prose

LINK = re.compile(r"\]\(<?([^)\s>]+)>?\)")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: Any) -> dict[Path, str]:
    """The pages that are written at a build, at the place where they will stand."""
    sys.path.insert(0, str(DOCS / "_ext"))
    import castiron_reference

    return {DOCS / path: text for path, text in castiron_reference.pages().items()}


def anchors(text: str) -> set[str]:
    """What a page's headings are called in links, as on GitHub and by MyST."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}


def check(page: Path, text: str, generated: dict[Path, str]) -> None:
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file in generated or file.exists(), f"{name(page)} → {target}"
        if anchor:
            there = generated.get(file) or file.read_text(encoding="utf-8")
            assert anchor in anchors(there), f"{name(page)} → {target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links(page: Path, generated: dict[Path, str]) -> None:
    check(page, prose(page), generated)


def test_links_of_generated_pages(generated: dict[Path, str]) -> None:
    for page, text in generated.items():
        check(page, re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), generated)


def test_every_page_of_docs_is_in_a_table_of_contents() -> None:
    listed = set()
    for page in DOCS.rglob("*.md"):
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            entries = [line.strip() for line in tree.splitlines() if line.strip() and line[0] != ":"]
            listed |= {(page.parent / f"{entry}.md").resolve() for entry in entries}
    assert {p for p in PAGES if p.is_relative_to(DOCS)} - listed == {DOCS / "index.md"}


def test_figures_of_concepts_are_as_drawn() -> None:
    sys.path.insert(0, str(DOCS / "_ext"))
    import concept_figures

    for figure, draw in concept_figures.FIGURES.items():
        drawn = str(draw())
        ET.fromstring(drawn)
        kept = (concept_figures.FOLDER / f"{figure}.svg").read_text(encoding="utf-8")
        assert kept == drawn, "run: python docs/_ext/concept_figures.py"
        assert f"images/concepts/{figure}.svg" in (DOCS / "concepts" / f"{figure}.md").read_text("utf-8")


def test_the_first_screen_of_the_readme_says_how_to_begin() -> None:
    first = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:45])
    for said in ("bash scripts/train.sh", "bash scripts/test.sh", "docs/images/tensorboard.png"):
        assert said in first
