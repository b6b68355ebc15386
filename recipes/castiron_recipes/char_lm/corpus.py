"""The text that the recipe brings along: what castiron says of its own rules, as plain lines."""

from __future__ import annotations

from pathlib import Path

from castiron.data.files import written_atomically
from castiron.diagnostics.catalogue import RULES


def write(folder: Path) -> Path:
    """Write `rules.txt`: each rule's code, name, what, why and remedy; → its path."""
    blocks = []
    for code in sorted(RULES):
        rule = RULES[code]
        blocks.append(f"{code} {rule.name}\n{rule.what}\n{rule.why}\n{rule.remedy}\n")
    path = folder / "rules.txt"
    with written_atomically(path) as file:
        file.write("\n".join(blocks).encode())
    return path
