"""Which recipe an incident may name: one that is here, and none that came with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from castiron.diagnostics import CastironError
from castiron.training.incident import Incident
from castiron.training.incident_config import load_incident_config
from castiron.training.incident_folder import IncidentFolder, write_incident

RECORD = Incident(
    code="N504", step=1, epoch=0, phase="forward", event="domain", message="log meets 0", policy="float32"
)


@pytest.fixture
def incident(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def make(recipe: str | None, files: Any = None, **facts: Any) -> IncidentFolder:
        config = {} if recipe is None else {"config.yaml": f"recipe: {recipe}\n"}
        path = write_incident(tmp_path / "incidents", RECORD, files={**config, **(files or {})}, facts=facts)
        return IncidentFolder.open(path)

    return make


def test_a_recipe_by_its_absolute_path(incident: Any, user_recipe: Path) -> None:
    assert load_incident_config(incident(f"{user_recipe}:Tiny")).recipe.name == "tiny"


def test_a_recipe_that_is_registered(incident: Any) -> None:
    assert load_incident_config(incident("lstm-sentiment")).recipe.name == "lstm-sentiment"


def test_a_recipe_that_the_caller_names(incident: Any, user_recipe: Path) -> None:
    folder = incident("/nowhere/else.py:Tiny")
    with pytest.raises(CastironError) as error:
        load_incident_config(folder)
    assert [f.code for f in error.value.findings] == ["N515", "X808"]
    assert "The recipe of the run is not on this machine." in str(error.value)
    assert load_incident_config(folder, f"{user_recipe.name}:Tiny").recipe.name == "tiny"


@pytest.mark.parametrize(
    "named", ["evil.py:Evil", "incidents/step-1/evil.py:Evil", "../evil.py:Evil", "./evil.py"]
)
def test_code_that_is_found_by_where_the_folder_lies_is_not_run(
    named: str, incident: Any, tmp_path: Path
) -> None:
    for path in (tmp_path / "evil.py", tmp_path.parent / "evil.py"):
        path.write_text("raise SystemExit('code was run')")
    with pytest.raises(CastironError) as error:
        load_incident_config(incident(named))
    assert str(error.value).startswith(
        "N515 The incident brings its code along, or finds it by where it lies. Replay runs no such code. "
        "Expected a recipe that is installed, or under an absolute path outside of the folder. Received "
        f"'{named}' at"
    )


def test_code_in_the_folder_is_not_run(
    incident: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = b"raise SystemExit('code was run')"
    inside = tmp_path / "incidents" / "step-1"
    folder = incident(f"{inside / 'evil.py'}:Evil", {"evil.py": evil})
    with pytest.raises(CastironError, match=r"N515 .*Received .*evil\.py at"):
        load_incident_config(folder)
    folder = incident("evil:Evil", {"evil.py": evil})
    monkeypatch.chdir(folder.path)  # where Python would find the module
    with pytest.raises(CastironError, match=r"N515 .*Received .*evil\.py at"):
        load_incident_config(folder)


def test_objects_in_the_config_are_not_made(incident: Any, tmp_path: Path) -> None:
    made = tmp_path / "made"
    with pytest.raises(CastironError):
        load_incident_config(incident(f'!!python/object/apply:os.mkdir ["{made}"]'))
    assert not made.exists()


@pytest.mark.parametrize(("kind", "loss"), [("module", ""), ("loop", ", loss_of=lambda model, batch, i: …")])
def test_what_is_no_recipe_is_replayed_from_python(kind: str, loss: str, incident: Any) -> None:
    folder = incident(None, kind=kind, root="my.nets.Net")
    with pytest.raises(CastironError) as error:
        load_incident_config(folder)
    assert str(error.value).endswith(f"castiron.lightning.replay('{folder.path}', Net(…){loss}).")
