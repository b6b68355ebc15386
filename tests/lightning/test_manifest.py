"""A table of checkpoints that do not fit: each is refused with its own message, and no file is changed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from castiron.diagnostics import ManifestError
from castiron.lightning.checkpoints import write_checkpoint
from castiron.torch.manifest import weights_digest
from castiron.training import RunDirectory, load_config
from castiron.training.checkpoint_file import RECORD
from castiron.training.launch import resume, train
from castiron.training.manifest import Manifest, read_manifest

TINY = (
    "data.batch_size=32",
    "model.embedding=8",
    "model.hidden=8",
    "model.text.max_vocabulary=200",
    "trainer.limit_train=3",
    "trainer.limit_validation=1",
    "trainer.limit_test=1",
    "trainer.max_epochs=1",
    "trainer.threads=1",
    "trainer.keep_last=1",
    "precision=bf16-true",
    "audit.level=off",
)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch pwned",)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    run, _ = train(load_config("lstm-sentiment", TINY), runs=runs, name="run")
    run.checkpoints.joinpath("best.ckpt").unlink()
    return run.path


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "runs" / "lstm-sentiment" / "run")
    return RunDirectory(tmp_path / "runs" / "lstm-sentiment" / "run")


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"}


State = dict[str, Any]
Change = Callable[[State, dict[str, Any]], None]


def rewrite(path: Path, change: Change, *, honest: bool = True) -> None:
    """Write a checkpoint again with its state and manifest changed; `honest`: it lists what is there."""
    from castiron.lightning.manifest import stored_records

    state = torch.load(path, weights_only=True)
    manifest = read_manifest(path)
    assert manifest is not None
    told = manifest.model_dump(mode="json")
    change(state, told)
    if honest and "state_dict" in state:
        stored = stored_records(state, set(told["tensors"].get("buffers", ())))
        told["tensors"] = {k: {n: r.model_dump() for n, r in v.items()} for k, v in stored.items() if v}
    write_checkpoint(state, Manifest.model_validate(told), path)


# --- what is done to a checkpoint, by name ------------------------------------------------------------


def weight_format(state: State, told: dict[str, Any]) -> None:
    state["state_dict"]["model.head.weight"] = state["state_dict"]["model.head.weight"].float()


def all_float64(state: State, told: dict[str, Any]) -> None:
    state["state_dict"] = {n: v.double() for n, v in state["state_dict"].items()}


def moment_format(state: State, told: dict[str, Any]) -> None:
    first = state["optimizer_states"][0]["state"][0]
    first["exp_avg_sq"] = first["exp_avg_sq"].bfloat16()


def shape(state: State, told: dict[str, Any]) -> None:
    state["state_dict"]["model.embedding.weight"] = state["state_dict"]["model.embedding.weight"][:-1].clone()


def missing(state: State, told: dict[str, Any]) -> None:
    del state["state_dict"]["model.head.bias"]


def unexpected(state: State, told: dict[str, Any]) -> None:
    state["state_dict"]["model.extra.weight"] = torch.zeros(3)


def policy(state: State, told: dict[str, Any]) -> None:
    told["declared"]["accumulate"] = "float64"
    told["policy"] = "p=bfloat16,accumulate=float64"


def island(state: State, told: dict[str, Any]) -> None:
    told["declared"]["islands"]["softmax"] = "float64"


def no_scaler(state: State, told: dict[str, Any]) -> None:
    told["scaler"] = None


def other_scaler(state: State, told: dict[str, Any]) -> None:
    told["scaler"] = {"kind": "dynamic", "scale": 65536.0}


def optimizer_class(state: State, told: dict[str, Any]) -> None:
    told["optimizers"][0]["type"] = "SGD"


def groups(state: State, told: dict[str, Any]) -> None:
    told["optimizers"][0]["groups"] = [5, 6]


def no_optimizer(state: State, told: dict[str, Any]) -> None:
    told["optimizers"] = []
    state["optimizer_states"] = []


def recipe(state: State, told: dict[str, Any]) -> None:
    told["recipe"] = "mnist-mlp"


def backend(state: State, told: dict[str, Any]) -> None:
    told["backend"] = "tensorflow"


def vocabulary(state: State, told: dict[str, Any]) -> None:
    told["assets"]["text.json"] = "0" * 64


def later(state: State, told: dict[str, Any]) -> None:
    told["format"] = 99


def not_listed(state: State, told: dict[str, Any]) -> None:
    state["state_dict"]["model.head.bias"] = state["state_dict"]["model.head.bias"].half()


def master_not_listed(state: State, told: dict[str, Any]) -> None:
    state["optimizer_states"][0]["castiron_masters"]["values"].pop(0)


def moment_not_listed(state: State, told: dict[str, Any]) -> None:
    del state["optimizer_states"][0]["state"][3]["exp_avg"]


CHANGED = {
    "a weight in another format": (
        weight_format,
        "C606 A parameter of the checkpoint is in another format.",
        "parameter  model.head.weight  float32     bfloat16  (lossy)",
        "Expected bfloat16 for 'model.head.weight'. Received float32",
    ),
    "every weight in float64": (all_float64, "C606 11 parameters of the checkpoint are in", "(lossy)"),
    "a moment of Adam in another format": (
        moment_format,
        "C606 An optimizer state of the checkpoint is in another format.",
        "optimizer state  0.0.exp_avg_sq  bfloat16    float32  (exact)",
    ),
    "another shape": (
        shape,
        "C607 A parameter of the checkpoint has another shape.",
        "Expected the shape [200, 8] for 'model.embedding.weight'. Received [199, 8]",
    ),
    "a weight is missing": (
        missing,
        "C608 The checkpoint lacks a parameter.",
        "Expected parameter 'model.head.bias'.",
    ),
    "a weight too many": (
        unexpected,
        "C608 The checkpoint has, and the model has not, a parameter.",
        "Received parameter 'model.extra.weight'",
    ),
    "another policy": (
        policy,
        "C605 The checkpoint was made under another policy.",
        "policy  accumulate  float64     float32",
        "--on-mismatch cast",
    ),
    "another island": (island, "C605 The checkpoint", "policy  islands.softmax  float64     float32"),
    "the scaler is missing": (
        no_scaler,
        "C610 The checkpoint lacks the state of its loss scaler. Expected scaling none. Received none stored",
    ),
    "another scaler": (
        other_scaler,
        "C610 The checkpoint is of another kind of loss scaling. Expected scaling none. "
        "Received scaling dynamic",
    ),
    "another optimizer": (
        optimizer_class,
        "C611 The checkpoint is of another optimizer.",
        "Expected AdamW of 11 parameters. Received SGD of 11 parameters",
    ),
    "parameters grouped otherwise": (groups, "C611", "Received AdamW of 5+6 parameters"),
    "no optimizer": (no_optimizer, "C611", "Received no optimizer"),
    "another recipe": (
        recipe,
        "C609 The checkpoint is of another recipe. Expected a checkpoint of 'lstm-sentiment'. "
        "Received one of 'mnist-mlp'",
    ),
    "another backend": (backend, "C609 The checkpoint is of another backend.", "Received one of tensorflow"),
    "another vocabulary": (
        vocabulary,
        "C612 What the recipe learned from its data is not what the checkpoint was trained with.",
        "file  text.json  0000000000000000",
    ),
    "a later version": (later, "C604 The checkpoint was written by a later version", "Received layout 99"),
}  # fmt: skip
DISHONEST = {
    "a weight that the manifest does not list so": (
        not_listed,
        "C613 The checkpoint's tensors are not those that its manifest lists.",
        "parameter  model.head.bias  bfloat16[2]  float16[2]",
    ),
    "a master copy that is gone": (master_not_listed, "C613", "master copy  0.0  float32[200,8]  none"),
    "a moment that is gone": (moment_not_listed, "C613", "optimizer state  0.3.exp_avg  float32[32]  none"),
}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path: Path) -> None:
    """One bit of a weight: the zip archive still opens, and torch.load reads it without a word."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("archive/data/0").header_offset
    data[start + 300] ^= 0x10
    path.write_bytes(bytes(data))
    torch.load(path, weights_only=True, mmap=True)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zeros(path: Path) -> None:
    path.write_bytes(bytes(5000))


def seal_gone(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data.replace(b"castiron-blake3:", b"xastiron-blake3:"))


def pickled_code(path: Path) -> None:
    path.write_bytes(pickle.dumps(Evil()))


def archived_code(path: Path) -> None:
    torch.save({"state_dict": Evil(), "global_step": 3}, path)


def foreign(path: Path) -> None:
    torch.save({"state_dict": torch.load(path, weights_only=True)["state_dict"], "global_step": 3}, path)


def manifest_no_json(path: Path) -> None:
    with_record(path, b"{")


def manifest_no_policy(path: Path) -> None:
    with_record(path, b'{"format": 1, "castiron": "0.1"}')


def with_record(path: Path, record: bytes) -> None:
    with zipfile.ZipFile(path) as archive:
        content = {i.filename: archive.read(i) for i in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, record if name.endswith(RECORD) else data)
        archive.comment = b""
    from castiron.training.checkpoint_file import _MARK, _SEAL, _digest

    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = _MARK + b"0" * 64
    with open(path, "r+b") as file:
        end = file.seek(0, 2) - _SEAL
        file.seek(0)
        digest = _digest(file, end)
        file.seek(end)
        file.write(_MARK + digest.encode())


BYTES = {
    "cut off": (truncate, "C601 The checkpoint cannot be used: it ends in the middle."),
    "a flipped bit": (flip, "C601 The checkpoint cannot be used: its bytes are not those that were written."),
    "empty": (empty, "C601 The checkpoint cannot be used: it is empty."),
    "zeros": (zeros, "C601 The checkpoint cannot be used: its beginning is not that of a checkpoint."),
    "the seal is gone": (seal_gone, "C601 The checkpoint cannot be used: its seal is gone."),
    "a bare pickle with code": (
        pickled_code,
        "C617 The file asks its reader to run code, and was not loaded.",
        "Received posix.system",
    ),
    "an archive with code": (archived_code, "C617 The file asks its reader to", "Received posix.system"),
    "a file of somebody else's": (foreign, "C602 The checkpoint carries no precision", "--weights FILE"),
    "a manifest that is no JSON": (manifest_no_json, "C603 The checkpoint's manifest cannot be read: it is"),
    "a manifest without a policy": (
        manifest_no_policy,
        "C603 The checkpoint's manifest cannot be read: policy: Field required.",
    ),
}  # fmt: skip


def refused(run: RunDirectory, said: tuple[str, ...]) -> None:
    """Resuming is refused in these words, and nothing on disk has changed."""
    before = bytes_below(run.path)
    with pytest.raises(ManifestError) as error:
        resume(run, ["trainer.max_epochs=2"])
    assert error.value.exit_code == 2
    for words in said:
        assert words in str(error.value), str(error.value)
    assert {f.code for f in error.value.findings} == {said[0][:4]}
    after = bytes_below(run.path)
    assert {k for k in {**before, **after} if before.get(k) != after.get(k)} == set()
    assert not Path("pwned").exists()


@pytest.mark.parametrize("what", CHANGED)
def test_a_checkpoint_that_does_not_fit(what: str, run: RunDirectory) -> None:
    change, *said = CHANGED[what]
    rewrite(run.checkpoint("last"), change)
    refused(run, tuple(said))


@pytest.mark.parametrize("what", DISHONEST)
def test_a_checkpoint_that_its_manifest_does_not_describe(what: str, run: RunDirectory) -> None:
    change, *said = DISHONEST[what]
    rewrite(run.checkpoint("last"), change, honest=False)
    refused(run, tuple(said))


@pytest.mark.parametrize("what", BYTES)
def test_a_file_that_is_not_what_was_written(what: str, run: RunDirectory) -> None:
    change, *said = BYTES[what]
    change(run.checkpoint("last"))
    refused(run, tuple(said))


def test_the_table_has_more_than_twenty_rows() -> None:
    assert len(CHANGED) + len(DISHONEST) + len(BYTES) >= 20


def test_a_vocabulary_that_has_changed_on_disk(run: RunDirectory) -> None:
    text = json.loads((run.assets / "text.json").read_text())
    (run.assets / "text.json").write_text(json.dumps(text, indent=1))
    refused(run, ("C612 What the recipe learned",))


def test_another_policy_is_refused_or_cast_and_told(run: RunDirectory) -> None:
    before = bytes_below(run.path)
    with pytest.raises(ManifestError, match="C605 The checkpoint was made under another policy"):
        resume(run, ["trainer.max_epochs=2", "precision=float32"])
    assert bytes_below(run.path) == before
    told: list[Any] = []
    reporter: Any = type("Tell", (), {"__getattr__": lambda self, name: lambda *a, **k: None})()
    reporter.verbosity, reporter.findings = "quiet", told.extend
    changes = ["trainer.max_epochs=2", "precision=float32"]
    _, outcome = resume(run, changes, on_mismatch="cast", reporter=reporter)
    assert (outcome.status, outcome.steps) == ("completed", 6)
    cast = next(f for f in told if f.code == "C619")
    assert cast.message.startswith("11 tensors of the checkpoint were cast, exactly.")
    assert "model.head.weight" in cast.message
    assert read_manifest(run.checkpoint("last")).policy.startswith("p=float32,c=float32,o=float32")  # type: ignore[union-attr]


def test_a_checkpoint_carries_what_it_is_made_of(run: RunDirectory) -> None:
    path = run.checkpoint("last")
    manifest = read_manifest(path)
    assert manifest is not None
    assert manifest.policy.startswith("p=bfloat16,c=bfloat16,o=bfloat16,updates.master=float32")
    assert manifest.plan["head"] == {
        "param": "bfloat16", "compute": "bfloat16", "output": "bfloat16", "buffers": "bfloat16",
    } or manifest.plan["head"]["compute"] == "bfloat16"  # fmt: skip
    assert str(manifest.tensors["parameters"]["model.head.weight"]) == "bfloat16[2,16]"
    assert str(manifest.tensors["optimizer"]["0.0.exp_avg"]) == "float32[200,8]"
    assert str(manifest.tensors["masters"]["0.0"]) == "float32[200,8]"
    assert manifest.scaler == {"kind": "none"}
    assert {"castiron", "torch", "lightning", "numpy"} <= set(manifest.versions)
    assert manifest.weights == weights_digest(torch.load(path, weights_only=True)["state_dict"])
    assert manifest.step == 3
