"""The parity table names tests that there are, and leaves no cell without a test or a reason."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "docs"))

from parity_features import TABLE, Cell, page  # noqa: E402

CELLS = [
    pytest.param(cell, id=f"{wing}: {feature}")
    for rows in TABLE.values()
    for feature, *cells in rows
    for wing, cell in zip(("torch", "tensorflow"), cells, strict=True)
]


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_has_a_test_or_a_reason(cell: Cell) -> None:
    assert bool(cell.test) != bool(cell.reason)
    if cell.reason:
        assert len(cell.reason.split()) > 1
        return
    file, _, name = cell.test.partition("::")
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_the_page_is_that_of_the_table() -> None:
    text = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
    assert text == page(), "run: python scripts/parity_page.py"
