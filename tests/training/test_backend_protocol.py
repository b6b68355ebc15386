"""Wings are reached by name; what is missing is said."""

from __future__ import annotations

import subprocess
import sys

import pytest

from castiron.diagnostics import ConfigError
from castiron.training import backend
from castiron.training.backend import Outcome, Progress, Silent, load_backend


def test_a_backend_that_does_not_exist():
    with pytest.raises(ConfigError) as error:
        load_backend("jax")
    assert str(error.value) == (
        "X805 No such backend. Expected 'torch' or 'tensorflow'. Received 'jax' at key 'backend'. "
        "Use one of the expected words."
    )


def test_a_package_that_is_not_installed(monkeypatch):
    home = (
        "castiron.keras.backend",
        "KerasBackend",
        "no_such_tensorflow",
        "pip install 'castiron[tensorflow]'",
    )
    monkeypatch.setitem(backend._HOMES, "tensorflow", home)
    with pytest.raises(ConfigError) as error:
        load_backend("tensorflow")
    assert str(error.value) == (
        "X812 The backend 'tensorflow' needs the package 'no_such_tensorflow', which is not installed. "
        "At key 'backend'. Run: pip install 'castiron[tensorflow]'"
    )


def test_a_wing_that_this_version_has_not(monkeypatch):
    monkeypatch.setitem(backend._HOMES, "tensorflow", ("castiron.no_wing", "X", "numpy", "pip install it"))
    with pytest.raises(ConfigError, match="This version of castiron has no backend 'tensorflow'"):
        load_backend("tensorflow")


@pytest.mark.parametrize(
    ("status", "code"), [("completed", 0), ("failed", 1), ("stopped", 75), ("interrupted", 130)]
)
def test_exit_codes_of_outcomes(status, code):
    assert Outcome(status=status, steps=1).exit_code == code


def test_the_silent_reporter_says_nothing(capsys):
    silent = Silent()
    silent.say("x")
    silent.findings(())
    silent.begin(Progress(step=0, steps=None, epoch=1, epochs=None))
    silent.update(Progress(step=1, steps=None, epoch=1, epochs=None))
    silent.end()
    assert capsys.readouterr() == ("", "")


def test_the_room_imports_no_framework():
    code = (
        "import sys, castiron.training.launch, castiron.training.backend, castiron.training.config_file; "
        "print([m for m in ('torch', 'tensorflow', 'lightning', 'keras') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
