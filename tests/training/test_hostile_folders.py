"""Folders and checkpoints that somebody else prepared: links that lead out, pipes, archives that expand."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest

from castiron.data import FittedMissing, TextEncoder
from castiron.data import files as data_files
from castiron.diagnostics import CastironError, DataError, ManifestError, RunError
from castiron.training import RunDirectory
from castiron.training.incident import Incident
from castiron.training.incident_folder import IncidentFolder, write_incident
from castiron.training.inspection.inspect import inspect_file
from castiron.training.yaml_reader import read_file


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory.create(tmp_path / "runs", "tiny", "first")
    run.write_text("config.yaml", "recipe: tiny\n")
    return run


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", ".lock", "summary.json", "checkpoints/last.ckpt", "assets"]
)
def test_a_link_out_of_a_run_is_refused(run: RunDirectory, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "precious"
    outside.write_text("precious\n")
    (run.path / name).symlink_to(outside)
    with pytest.raises(RunError) as caught:
        RunDirectory.open("tiny/first", tmp_path / "runs")
    assert str(caught.value) == (
        "X822 The file is not used: it is a link that leads out of the run's folder. At "
        f"{run.path / name}. Put the file itself there. A run that somebody gave you: ask why."
    )
    assert caught.value.exit_code == 2
    assert outside.read_text() == "precious\n"
    for found in ("first", "tiny"):  # by its name alone, and as the latest of its recipe
        with pytest.raises(RunError, match="X822"):
            RunDirectory.open(found, tmp_path / "runs")


def test_links_within_a_run_and_to_it_are_used(run: RunDirectory, tmp_path: Path) -> None:
    (run.checkpoints / "last.ckpt").write_bytes(b"1")
    (run.checkpoints / "best.ckpt").symlink_to("last.ckpt")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "runs")
    assert RunDirectory.open("tiny/first", tmp_path / "elsewhere").name == "tiny/first"


def test_a_pipe_in_a_run_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    os.mkfifo(run.path / "summary.json")
    with pytest.raises(RunError, match=r"X822 The file is not used: it is a pipe\. At .*summary\.json"):
        RunDirectory.open("tiny/first", tmp_path / "runs")


@pytest.mark.parametrize("name", ["state.json", "incident.json", "batch.safetensors"])
def test_a_link_out_of_an_incident_is_refused(tmp_path: Path, name: str) -> None:
    record = Incident(
        code="N504", step=1, epoch=0, phase="forward", event="domain", message="log met 0", policy="float32",
        castiron="0.1.0",
    )  # fmt: skip
    folder = write_incident(tmp_path / "incidents", record, files={"batch.safetensors": b"\0" * 8})
    outside = tmp_path / name
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(CastironError) as caught:
        IncidentFolder.open(folder).bytes("batch.safetensors")
    assert str(caught.value).startswith(
        "N513 A file of the incident cannot be used: it is a link that leads out of the folder. "
        f"At {folder / name}."
    )
    assert caught.value.exit_code == 2


def test_pipes_and_folders_are_no_checkpoints(tmp_path: Path) -> None:
    pipe = tmp_path / "last.ckpt"
    os.mkfifo(pipe)
    for path, kind in ((pipe, "pipe"), (tmp_path, "folder"), (Path("/dev/zero"), "device")):
        with pytest.raises(ManifestError) as caught:
            inspect_file(path)
        assert str(caught.value).startswith(f"C601 The checkpoint cannot be used: it is a {kind}. At {path}.")


def test_pipes_are_no_configs_vocabularies_or_values(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (found,) = read_file(pipe).findings
    assert str(found).startswith(f"X823 Expected a YAML file. Received the pipe '{pipe}'")
    with pytest.raises(DataError, match=r"D155 .* Received a pipe at"):
        TextEncoder.load(pipe)
    with pytest.raises(DataError, match=r"X822 .*: it is a pipe\. At"):
        FittedMissing.load(pipe)


def test_a_vocabulary_of_another_version_or_kind(tmp_path: Path) -> None:
    path = tmp_path / "text.json"
    TextEncoder(max_vocabulary=30, min_frequency=1).fit(["a good film"]).save(path)
    text = path.read_text(encoding="utf-8")
    inner = text[text.index('"tokenizer": ') + 13 : text.rindex("}")]
    for content, received in (
        (text.replace('"version": 1', '"version": 2', 1), "version 2"),
        (text.replace('"version": 1', '"version": "1"', 1), "version '1'"),
        (inner, "a JSON file of another kind"),  # a tokenizer.json of Hugging Face
        (text.replace('"WordLevel"', '"WordLevel9"'), "a tokenizer that does not load"),
    ):
        assert content != text
        path.write_text(content, encoding="utf-8")
        with pytest.raises(DataError) as caught:
            TextEncoder.load(path)
        assert (
            "D155 The text encoder cannot be loaded. Expected a JSON file that TextEncoder.save wrote"
            in str(caught.value)
        )
        assert f"Received {received}" in str(caught.value)
        assert caught.value.exit_code == 2


def test_a_keras_file_that_expands_beyond_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_files, "FREE", 1 << 20)
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", '{"class_name": "Sequential", "config": {}}')
        archive.writestr("model.weights.h5", b"\0" * (8 << 20))
    with pytest.raises(ManifestError, match=r"C601 .* its [\d,]+ bytes expand to 8,388,608"):
        inspect_file(path)


def test_a_torch_file_that_expands_beyond_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from castiron.torch.weights import read_weights

    monkeypatch.setattr(data_files, "FREE", 1 << 20)
    plain, path = io.BytesIO(), tmp_path / "bomb.pt"
    torch.save({"w": torch.zeros(2 << 20)}, plain)
    with zipfile.ZipFile(plain) as stored, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with pytest.raises(ManifestError, match=r"C601 .* its [\d,]+ bytes expand to 8,38\d,\d\d\d"):
        read_weights(path)
