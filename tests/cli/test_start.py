"""The front door opens at once, and loads no framework."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

HEAVY = ("torch", "tensorflow", "lightning", "keras", "numpy", "pyarrow", "ruamel")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["policy", "--help"],
        ["data", "check", "--help"],
        ["doctor", "-h"],
    ],
)
def test_help_loads_nothing_heavy(arguments):
    code = (
        "import sys\n"
        "from castiron.cli.main import run\n"
        f"code = run({arguments!r})\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"


def test_help_answers_within_a_third_of_a_second_of_work():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "castiron.cli", "--help"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # Of processor time: on a machine that does other things as well, the clock tells of those.
    assert spent < 0.4


@pytest.mark.parametrize(
    "command", ["recipes list", "configs list", "policy list", "rules", "configs list --json"]
)
def test_lists_load_no_framework(command):
    code = (
        "import sys\n"
        "from castiron.cli.main import run\n"
        f"code = run({command.split()!r})\n"
        "print([m for m in ('torch', 'tensorflow', 'lightning', 'keras') if m in sys.modules], code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"


def test_every_command_has_help_that_fits_a_screen(castiron, monkeypatch):
    from castiron.cli.main import app

    names = [c.name for c in app.registered_commands] + [g.name for g in app.registered_groups]
    commands = """train evaluate predict replay report health suggest compare validate audit verify doctor
    inspect export convert rules board data policy recipes configs"""
    assert names == commands.split()
    for name in ("", *names):
        monkeypatch.setenv("COLUMNS", "100" if name else "80")
        said = castiron(*filter(None, [name]), "--help")
        assert said.code == 0, name
        assert len(said.out.splitlines()) <= 45, name
        assert "..." not in said.out.partition("Commands:")[2], "a summary is cut off"


def test_a_reader_that_has_read_enough():
    done = subprocess.run(
        f"{sys.executable} -m castiron.cli rules | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("code")
    assert done.stderr == ""
