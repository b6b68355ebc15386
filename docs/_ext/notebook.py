"""Writes docs/tour.ipynb from docs/tour.md: `python docs/_ext/notebook.py`.

The page is the source. Its Python blocks are run one after the other, in one process and on one thread, and
what they print is kept in the notebook. A test holds both against each other.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1]


def cells(page: str) -> list[tuple[str, str]]:
    """("markdown" or "code", text) of each cell."""
    found = []
    for n, part in enumerate(re.split(r"^```python\n(.*?)^```\n", page, flags=re.M | re.S)):
        if part.strip():
            found.append(("code" if n % 2 else "markdown", part.strip()))
    return found


def prose(text: str) -> str:
    """Markdown as a notebook shows it: links within the docs lose what only Sphinx knows."""
    return re.sub(r" As a notebook: \{download\}`tour\.ipynb`\.", "", text)


def notebook(page: str) -> dict[str, Any]:
    """The notebook of a page, with what its cells print."""
    made, names = [], {"__name__": "__main__"}
    for n, (kind, text) in enumerate(cells(page), 1):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{n}", "metadata": {}, "source": lines(text)}
        if kind == "markdown":
            cell["source"] = lines(prose(text))
        else:
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                exec(compile(text, f"cell-{n}", "exec"), names)
            shown = [{"output_type": "stream", "name": "stdout", "text": lines(said.getvalue())}]
            cell |= {"execution_count": None, "outputs": shown if said.getvalue() else []}
        made.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    target = DOCS / "tour.ipynb"
    made = notebook((DOCS / "tour.md").read_text(encoding="utf-8"))
    os.chdir(DOCS)
    target.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
