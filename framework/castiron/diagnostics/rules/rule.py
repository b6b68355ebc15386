"""What the catalogue knows of one code."""

from __future__ import annotations

from dataclasses import dataclass

from castiron.diagnostics.finding import Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One kind of finding. The text here is what `castiron rules`, the docs and the editor show."""

    code: str
    name: str
    """Short, in kebab-case: `text-in-numeric-column`."""
    severity: Severity
    what: str
    """What it means, in a sentence or two."""
    why: str
    """Why it is bad: what happens without castiron."""
    remedy: str
    """What to do, as an instruction."""
    bad: str = ""
    """An example that raises it."""
    good: str = ""
    """The example, mended."""
