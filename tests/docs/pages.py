"""The pages that people read, and what stands in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GENERATED = (DOCS / "rules", DOCS / "reference" / "generated")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *(p for p in sorted(DOCS.rglob("*.md")) if not any(p.is_relative_to(g) for g in GENERATED)),
    *sorted((ROOT / "recipes").rglob("README.md")),
]
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>[^>]+?) -->\n)?^```(?P<kind>\S*)\n(?P<text>.*?)^```", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    kind: str
    text: str
    line: int
    """Line of the page at which its text begins."""
    why_not: str | None
    """Why it is not run, as a comment above it says."""


def name(page: Path) -> str:
    """A page's path, as tests are named."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, kind: str) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        if found["kind"] == kind:
            line = text.count("\n", 0, found.start("text")) + 1
            yield Block(kind, found["text"], line, found["why"])


def prose(page: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"^(```|:::).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
