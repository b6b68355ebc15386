"""The live report: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import io

import pytest

from castiron.cli import console, reporter
from castiron.cli.reporter import TerminalReporter, describe
from castiron.diagnostics import finding
from castiron.training.backend import Progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def at(step: int, **told: object) -> Progress:
    return Progress(step=step, steps=100, epoch=1, epochs=2, **told)  # type: ignore[arg-type]


def test_a_glance():
    progress = at(7, loss=0.41321, metrics={"accuracy": 0.8123}, items_per_s=11204.3, scale=65536.0, held=1)
    assert describe(progress) == (
        "epoch 1/2  loss 0.4132  validation accuracy 0.8123  11,204 items/s  scale 65536  held 1"
    )
    assert describe(Progress(step=1, steps=None, epoch=3, epochs=None)) == "epoch 3"


def test_plain_lines_are_few_but_tell_every_validation(capsys, monkeypatch):
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr(reporter.time, "monotonic", lambda: float(next(clock)))
    told = TerminalReporter()
    told.begin(at(0))
    for step in range(1, 13):
        told.update(at(step, loss=1 / step))
    told.update(at(13, metrics={"accuracy": 0.5}))
    told.update(at(14, metrics={"accuracy": 0.5}))
    told.end()
    told.end()
    lines = capsys.readouterr().out.splitlines()
    assert 3 <= len(lines) <= 6
    assert lines[-2] == "step 13/100  epoch 1/2  validation accuracy 0.5000"
    assert lines[-1] == "step 14/100  epoch 1/2  validation accuracy 0.5000"


def test_the_last_line_is_told_once(capsys):
    told = TerminalReporter()
    told.begin(at(0))
    told.update(at(5, metrics={"f1": 0.5}))
    told.end()
    assert capsys.readouterr().out == "step 5/100  epoch 1/2  validation f1 0.5000\n"


def test_quiet_tells_findings_only(capsys):
    told = TerminalReporter("quiet")
    told.say("something")
    told.begin(at(0))
    told.update(at(1, metrics={"f1": 0.5}))
    told.findings([finding("X815", "Planted.", severity="warning")])
    told.end()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("warning X815  Planted.")


def test_a_bar_on_a_terminal(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    told = TerminalReporter()
    told.begin(at(0))
    told.update(at(50, loss=0.5, metrics={"accuracy": 0.75}))
    told.say("a line above the bar")
    told.findings([finding("X815", "Planted.", severity="warning")])
    told.end()
    shown = screen.getvalue()
    assert "50/100" in shown
    assert "loss 0.5000  validation accuracy 0.7500" in shown
    assert "a line above the bar" in shown
    assert "\x1b[" in shown


def test_the_bar_goes_away_after_an_error(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    told = TerminalReporter()
    told.begin(at(0))
    told.end()
    told.end()
    assert screen.getvalue().rstrip().endswith("\x1b[?25h"), "the cursor is shown again"


# --- console ---------------------------------------------------------------------------------------


def test_tables_without_a_terminal_do_not_fold_paths(capsys):
    path = "/a/" + "very_long_folder/" * 30 + "file.csv"
    console.table(("file", "rows"), [(path, 3), ("b", None)], right=(1,))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["file", "rows"]
    assert lines[1] == f"{path}     3"
    assert lines[2] == "b"


def test_findings_without_a_terminal_are_one_line_each(capsys):
    console.findings([finding("X815", "word " * 100)])
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 2


def test_tables_on_a_terminal(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    console.table(("a", "b"), [("[red]not markup[/red]", 1)])
    console.say("styled", style="bold red")
    assert "[red]not markup[/red]" in screen.getvalue()
    assert "\x1b[1;31mstyled" in screen.getvalue()


@pytest.mark.parametrize(("term", "terminal"), [("dumb", False), ("xterm", True)])
def test_what_a_terminal_is(monkeypatch, term, terminal):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("TERM", term)
    assert console.is_terminal(Terminal()) is terminal
    assert not console.is_terminal(io.StringIO())
