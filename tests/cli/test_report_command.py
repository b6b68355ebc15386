"""`castiron report`: a run told in the terminal, and as one page that needs nothing else."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

MLP = f"{Path(__file__).parent / 'small_recipes.py'}:Rows"
SMALL = ("data.batch_size=32", "trainer.threads=1", "trainer.max_epochs=2", "health.every=1")


class Page(HTMLParser):
    """Counts elements, and keeps what refers to something outside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.outside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        for name, value in attrs:
            if name in ("src", "href") and not value.startswith("#"):
                self.outside.append(value)


def test_a_run_is_told(castiron, tmp_path):
    assert castiron("train", MLP, *SMALL, "--name", "a", "--quiet").code == 0
    said = castiron("report", "small-mlp/a")
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert lines[:3] == ["Run small-mlp/a", "", lines[2]]
    assert re.fullmatch(r"Completed after 16 steps in [\d.]+ s\.", lines[2])
    for title in ("Plan", "Data", "Audit", "Curves", "Health", "Updates", "Environment"):
        assert title in lines
    said = castiron("report", "small-mlp/a", "--html")
    assert said.out.strip() == "runs/small-mlp/a/report.html"
    text = (tmp_path / said.out.strip()).read_text()
    page = Page(text)
    assert page.outside == []
    assert "script" not in page.tags
    assert page.tags["svg"] >= 6
    assert text.index("Completed after") < text.index("<h2")
    assert "The run has no record of it" not in text


def test_a_run_in_pieces_is_told_as_far_as_it_goes(castiron, tmp_path):
    run = tmp_path / "runs" / "r" / "a"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("recipe: r\n")
    said = castiron("report", "r/a")
    assert said.code == 0, said.err
    assert "Running." in said.out
    (run / "plan.json").write_text("{")
    (run / "summary.json").write_text(json.dumps({"status": "failed", "message": "The loss is <b>NaN</b>."}))
    said = castiron("report", "r/a", "--terminal", "-o", "page.html")
    assert said.code == 0, said.err
    assert "Failed." in said.out
    assert "Not readable: plan.json" in said.out
    page = (tmp_path / "page.html").read_text()
    assert "&lt;b&gt;NaN" in page
    assert "<b>NaN" not in page
    assert 'class="verdict ill"' in page


@pytest.mark.parametrize("target", ["nothing", "runs"])
def test_no_run(castiron, target):
    said = castiron("report", target)
    assert said.code == 2
    assert "X818" in said.err
