"""What a comparison leaves behind: JSON, TensorBoard events of each policy, figures as PNG, and the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from castiron.health import tags
from castiron.health.writer import EventWriter
from castiron.training.compare_page import LAYERS, SIDES, as_html, drawn, layer_rows, side_rows
from castiron.training.comparing import Comparison, Side
from castiron.training.run_directory import RunDirectory

RECORD, PAGE, FIGURES = "compare.json", "compare.html", "figures"


def keep(found: Comparison, runs: Path, name: str | None = None, *, html: bool = False) -> Path:
    """Write a comparison to `runs/compare/<name>`; → that folder.

    Each policy has a folder of its own there, so that TensorBoard lays their curves over one another.

    Raises:
        RunError: the name is taken (X817), or no name for a folder (X820); nothing can be written (X819).
    """
    home = RunDirectory.create(runs, "compare", name)
    home.checkpoints.rmdir()
    home.write_json(RECORD, found.as_dict())
    pictures = {file: canvas.png(scale=2) for file, canvas in drawn(found).items()}
    folder = RunDirectory(home.path / FIGURES)
    for file, png in pictures.items():
        folder.put_back(f"{_file(file)}.png", png)
    for side in found.sides:
        if side.losses:
            _events(found, side, home.path / _file(side.name))
    with EventWriter(home.path) as writer:
        writer.text(tags.compared(), _told(found))
        for file, png in pictures.items():
            says = "Policies side by side, at the widest one's place."
            writer.image(tags.figure(f"compared {file}", says), png)
    if html:
        home.write_text(PAGE, as_html(found))
    return home.path


def _events(found: Comparison, side: Side, folder: Path) -> None:
    with EventWriter(folder) as writer:
        for step, loss in enumerate(side.losses, 1):
            writer.scalar(tags.loss("train"), loss, step)
        for name, value in side.metrics.items():
            writer.scalar(tags.metric(name, "validation"), value, len(side.losses))
        for step, differences in side.differences.items():
            values: dict[tags.Tag | str, float] = {
                str(tags.difference(what, layer)): d.relative_norm
                for what, layers in differences.items()
                for layer, d in layers.items()
            }
            writer.scalars(values, step)
        if side.differences:
            rows = layer_rows(side.differences[0]["activations"], found)
            writer.text(tags.compared(), "\n".join([*found.verdict(side), "", *_markdown(LAYERS, rows)]))


def _told(found: Comparison) -> str:
    lines = [line for s in found.sides for line in found.verdict(s)]
    return "\n\n".join([*lines, "\n".join(_markdown(SIDES, side_rows(found)))])


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _file(name: str) -> str:
    """A name that any file system takes."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", name)
