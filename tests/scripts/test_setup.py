"""scripts/_setup.sh, with a stand-in for Python that notes what it is asked to do."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

STAND_IN = """#!/bin/bash
# A Python of version $VERSION: makes environments of itself, notes what pip is to install.
version="${VERSION:-3.11.7}"
case "$*" in
    -V) echo "Python $version" ;;
    "-c import sys; sys.exit(not"*)
        minor="${version#3.}" && minor="${minor%%.*}"
        [ "$minor" -ge 11 ] && [ "$minor" -le 13 ] ;;
    "-m venv --clear "*)
        [ -z "${NO_VENV:-}" ] || { echo "No module named venv" >&2; exit 1; }
        rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python"
        printf '#!/bin/bash\\necho "castiron: $*"\\n' >"$4/bin/castiron"; chmod +x "$4/bin/castiron" ;;
    "-m pip --version") echo "pip 1" ;;
    "-m pip install"*)
        printf '%s\\n' "$@" >>"$LOG"
        echo "--" >>"$LOG"
        [ -z "${PIP_FAILS:-}" ] || { echo "ERROR: no network" >&2; exit 1; } ;;
    "-m pytest"*) echo "pytest in $PWD: ${*:3}" ;;
    *) echo "stand-in: unexpected: $*" >&2; exit 99 ;;
esac
"""


class Checkout:
    """A checkout in a folder with a blank in its name, and a PATH with the stand-in on it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a check out"
        self.log = folder / "pip.log"
        (self.root / "scripts").mkdir(parents=True)
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.root / name)
        for script in (ROOT / "scripts").glob("*.sh"):
            shutil.copy(script, self.root / "scripts" / script.name)
        self.bin = folder / "bin"
        self.bin.mkdir()
        for tool in ("bash", "cat", "cksum", "dirname", "flock", "mkdir", "mv", "rm", "uname", "cp", "chmod"):
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)
        self.add_python("python3.11")

    def add_python(self, name: str) -> Path:
        path = self.bin / name
        path.write_text(STAND_IN)
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        return path

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(self.root / "scripts" / script), *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env={
                "PATH": str(self.bin),
                "LOG": str(self.log),
                "HOME": os.environ.get("HOME", "/"),
                **environment,
            },
        )

    def installations(self) -> list[list[str]]:
        if not self.log.exists():
            return []
        return [part.splitlines() for part in self.log.read_text().split("--\n") if part]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_it_makes_an_environment_and_installs_once(checkout: Checkout) -> None:
    first = checkout.run("test.sh", "-k", "a b")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith(f"pytest in {checkout.root}: --numprocesses auto ")
    assert first.stdout.endswith(" -k a b\n")
    assert "Making a virtual environment" in first.stderr
    assert "Python 3.11.7" in first.stderr
    (asked,) = checkout.installations()
    assert "torch==2.13.0" in asked
    assert f"{checkout.root}[dev,docs]" in asked
    assert asked[asked.index("-c") + 1] == str(checkout.root / "constraints.txt")
    second = checkout.run("test.sh")
    assert second.returncode == 0
    assert second.stderr == ""
    assert len(checkout.installations()) == 1


def test_the_versions_it_asks_for_are_those_of_the_constraints(checkout: Checkout) -> None:
    checkout.run("test.sh")
    pinned = (ROOT / "constraints.txt").read_text().replace("_", "-").splitlines()
    asked = [a for a in checkout.installations()[0] if "==" in a]
    assert len(asked) == 2
    assert all(a in pinned for a in asked if not a.startswith("tensorflow=="))


@pytest.mark.parametrize("file", ["pyproject.toml", "constraints.txt"])
def test_it_installs_again_when_what_is_needed_changes(checkout: Checkout, file: str) -> None:
    checkout.run("test.sh")
    with (checkout.root / file).open("a") as f:
        f.write("# more\n")
    again = checkout.run("test.sh")
    assert again.returncode == 0
    assert "Making" not in again.stderr
    assert len(checkout.installations()) == 2


def test_it_takes_up_what_was_interrupted(checkout: Checkout) -> None:
    failed = checkout.run("test.sh", PIP_FAILS="1")
    assert failed.returncode == 2
    assert "The installation failed; what pip said stands above." in failed.stderr
    assert "pytest" not in failed.stdout
    again = checkout.run("test.sh")
    assert again.returncode == 0
    assert "Making" not in again.stderr
    assert len(checkout.installations()) == 2


def test_it_begins_anew_where_the_environment_was_not_finished(checkout: Checkout) -> None:
    (checkout.root / ".venv" / "bin").mkdir(parents=True)
    (checkout.root / ".venv" / "bin" / "python").symlink_to("/nowhere/python")
    done = checkout.run("test.sh")
    assert done.returncode == 0, done.stderr
    assert "Making a virtual environment" in done.stderr


def test_without_a_python_that_fits(checkout: Checkout) -> None:
    (checkout.bin / "python3.11").unlink()
    none = checkout.run("train.sh")
    assert none.returncode == 2
    assert none.stderr.startswith(
        "castiron needs Python 3.11, 3.12 or 3.13, and none was found on the PATH.\n"
    )
    checkout.add_python("python3")
    old = checkout.run("train.sh", VERSION="3.9.1")
    assert (old.returncode, old.stderr) == (2, none.stderr)
    assert not (checkout.root / ".venv").exists()


def test_a_python_that_is_named(checkout: Checkout, tmp_path: Path) -> None:
    (checkout.bin / "python3.11").unlink()
    (tmp_path / "other").mkdir()
    path = checkout.add_python("python3").rename(tmp_path / "other" / "python3")
    assert checkout.run("test.sh", CASTIRON_PYTHON=str(path)).returncode == 0
    wrong = checkout.run("test.sh", CASTIRON_PYTHON="/nowhere", VERSION="3.12.0")
    assert wrong.returncode == 0, "what is installed is used"


def test_a_named_python_that_does_not_fit(checkout: Checkout) -> None:
    wrong = checkout.run("test.sh", CASTIRON_PYTHON="/nowhere")
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "CASTIRON_PYTHON=/nowhere is no Python 3.11, 3.12 or 3.13.\n",
    )


def test_without_the_venv_module(checkout: Checkout) -> None:
    done = checkout.run("test.sh", NO_VENV="1")
    assert done.returncode == 2
    assert "cannot make a virtual environment." in done.stderr
    assert "apt install python3-venv" in done.stderr


def test_an_environment_of_another_python(checkout: Checkout) -> None:
    checkout.run("test.sh")
    done = checkout.run("test.sh", VERSION="3.14.0")
    assert done.returncode == 2
    assert "holds Python 3.14.0; castiron needs 3.11 to 3.13." in done.stderr


def test_train_says_how_to_look_at_it(checkout: Checkout) -> None:
    done = checkout.run("train.sh", "seed=3")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"castiron: train lstm-sentiment --runs {checkout.root}/runs seed=3"
    assert lines[2] == "Look at it in TensorBoard:"
    assert lines[3].strip() == (
        f"{checkout.root}/.venv/bin/castiron board {checkout.root}/runs".replace(
            "a check out", "a\\ check\\ out"
        )
    )


def test_train_hands_on_the_exit_code(checkout: Checkout) -> None:
    checkout.run("test.sh")
    command = checkout.root / ".venv" / "bin" / "castiron"
    command.write_text("#!/bin/bash\nexit 75\n")
    done = checkout.run("train.sh")
    assert (done.returncode, done.stdout) == (75, "")
