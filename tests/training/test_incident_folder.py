"""The folder of an incident: whole or not at all, bounded, and read without trusting it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from castiron.diagnostics import CastironError, RunError
from castiron.training import incident_folder
from castiron.training.incident import Incident
from castiron.training.incident_folder import IncidentFolder, listed_incidents, write_incident

RECORD = Incident(
    code="N504",
    step=12,
    epoch=2,
    phase="forward",
    event="domain",
    message="log met 0",
    policy="float32",
    castiron="0.1.0",
)
FILES: dict[str, Any] = {"config.yaml": "seed: 17\n", "batch.safetensors": b"\0" * 100}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assets = tmp_path / "learned"
    (assets / "deep").mkdir(parents=True)
    (assets / "deep" / "words.json").write_text("{}")
    files = {**FILES, "assets": assets}
    return write_incident(tmp_path / "incidents", RECORD, facts={"scale": 2.0}, files=files)


def said(error: pytest.ExceptionInfo[CastironError]) -> str:
    (found,) = error.value.findings
    return str(found)


def test_what_is_written_comes_back(folder: Path) -> None:
    assert folder.name == "step-12"
    opened = IncidentFolder.open(folder)
    assert opened.incident == RECORD
    assert opened.facts == {"scale": 2.0}
    assert opened.bytes("batch.safetensors") == FILES["batch.safetensors"]
    assert opened.config == folder / "config.yaml"
    assert opened.config.read_text() == "seed: 17\n"
    assert (opened.folder("assets") / "deep" / "words.json").read_text() == "{}"
    assert opened.names("assets") == ["assets/deep/words.json"]
    assert set(json.loads((folder / "incident.json").read_text())) == set(Incident.model_fields)


def test_a_second_incident_of_the_same_step_gets_a_name_of_its_own(tmp_path: Path) -> None:
    names = [write_incident(tmp_path, RECORD, files=FILES).name for _ in range(3)]
    write_incident(tmp_path, RECORD.model_copy(update={"step": 3}))
    assert names == ["step-12", "step-12-2", "step-12-3"]
    assert [p.name for p in listed_incidents(tmp_path)] == ["step-3", *names]


@pytest.mark.parametrize("given", ["", "incident.json", ".."])
def test_it_is_found_by_its_folder_its_record_and_its_run(given: str, folder: Path) -> None:
    opened = IncidentFolder.open(folder / given)
    assert opened.path.resolve() == folder
    assert IncidentFolder.open(folder.parent.parent).path == folder, "the run"


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(incident_folder.os, "fsync", full)
    with pytest.raises(RunError) as error:
        write_incident(tmp_path / "incidents", RECORD, files=FILES)
    assert said(error).startswith("X819 The file cannot be written: the disk is full.")
    assert list((tmp_path / "incidents").iterdir()) == []


def test_tensors_beyond_the_budget_are_left_out_and_the_record_says_so(tmp_path: Path) -> None:
    for _ in range(2):
        path = write_incident(tmp_path, RECORD, files=FILES, budget=150)
    opened = IncidentFolder.open(path)
    assert not opened.has("batch.safetensors")
    assert opened.config is not None, "small files are always there"
    with pytest.raises(CastironError) as error:
        opened.file("batch.safetensors")
    assert said(error).startswith(
        "N515 'batch.safetensors' was not stored: its 100 bytes do not fit into the 150 of a run's "
        f"incidents. At {path}."
    )


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", "a\\b"])
def test_names_outside_of_the_folder_are_not_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="within the incident's folder"):
        write_incident(tmp_path, RECORD, files={name: b"x"})
    assert listed_incidents(tmp_path) == []
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


# --- reading what somebody else wrote ---------------------------------------------------------------------


def test_no_such_folder_names_near_ones(folder: Path) -> None:
    with pytest.raises(CastironError) as error:
        IncidentFolder.open(folder.parent / "step-21")
    assert said(error) == (
        f"N512 There is no such folder. Expected an incident's folder. At {folder.parent / 'step-21'}. "
        f"Did you mean '{folder}'?"
    )


def test_a_folder_that_is_no_incident(tmp_path: Path) -> None:
    with pytest.raises(CastironError) as error:
        IncidentFolder.open(tmp_path)
    assert said(error) == (
        f"N512 'incident.json' is missing. Expected an incident's folder. At {tmp_path}. Give a folder such "
        "as runs/RECIPE/NAME/incidents/step-12, or its incident.json."
    )


def test_a_run_with_several_incidents_lists_them(folder: Path) -> None:
    other = write_incident(folder.parent, RECORD.model_copy(update={"step": 40}))
    with pytest.raises(CastironError) as error:
        IncidentFolder.open(folder.parent.parent)
    assert "2 incidents are in this folder." in said(error)
    assert said(error).endswith(f"Choose one: {folder}, {other}.")


def test_another_layout(folder: Path) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "format": 9, "castiron": "7.1"}))
    with pytest.raises(CastironError) as error:
        IncidentFolder.open(folder)
    assert said(error) == (
        "N514 The incident was written by another version of castiron. Expected layout 1. Received layout 9, "
        f"of castiron 7.1 at {folder}. Replay it with the version that wrote it; incident.json says which "
        "one, under `castiron`."
    )


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("batch.safetensors", b"\0" * 99, "it is cut off or has grown. Expected 100 bytes. Received 99 at"),
        ("batch.safetensors", b"\1" * 100, "its content has changed since it was written."),
        ("batch.safetensors", None, "it is missing."),
        ("incident.json", b"{}", "code: Field required."),
        ("incident.json", None, "'incident.json' is missing."),
        ("incident.json", RECORD.model_dump_json().encode(), "it is cut off or has grown."),
        ("state.json", None, "it is missing."),
        ("state.json", b"[1", "it is not JSON"),
        ("state.json", b"[1]", "it is not the index of an incident."),
        ("state.json", b'{"format": 1}', "it is not the index of an incident."),
        ("state.json", b"[" * 200_000, "it is not JSON"),
        ("state.json", b"\xff", "it is not JSON"),
    ],
)
def test_damaged_files(name: str, change: bytes | None, message: str, folder: Path) -> None:
    path = folder / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change)
    with pytest.raises(CastironError) as error:
        IncidentFolder.open(folder).file("batch.safetensors")
    assert message in said(error)
    assert str(folder) in said(error)


def test_an_index_cannot_lead_outside_of_the_folder(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"x")
    state = json.loads((folder / "state.json").read_text())
    entry = {"bytes": 1, "blake3": incident_folder.digest_of(secret)}
    names = (str(secret), "../../secret", "link")
    os.symlink(secret, folder / "link")
    state["files"] |= dict.fromkeys(names, entry)
    (folder / "state.json").write_text(json.dumps(state))
    opened = IncidentFolder.open(folder)
    for name in names:
        with pytest.raises(RunError, match="N513"):
            opened.file(name)


def test_a_huge_record_is_not_read(folder: Path) -> None:
    with open(folder / "state.json", "r+b") as file:
        file.truncate(65 << 20)
    with pytest.raises(RunError, match="it is too large"):
        IncidentFolder.open(folder)


def test_it_may_be_copied_elsewhere(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "sent" / "the incident")
    assert IncidentFolder.open(copy).bytes("batch.safetensors") == FILES["batch.safetensors"]
