"""Looking into files of any origin, without executing anything in them."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest

from castiron.diagnostics import ManifestError
from castiron.training.inspection.inspect import inspect_file
from castiron.training.inspection.pickles import Unreadable, globals_of, read


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch pwned",)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "pwned").exists()


def test_a_state_dict_of_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "w.pt"
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).bfloat16()
    torch.save(model.state_dict(), path)
    found = inspect_file(path)
    assert found.kind == "torch state dict"
    assert {n: str(r) for n, r in found.tensors.items()} == {
        "0.weight": "bfloat16[2,3]",
        "0.bias": "bfloat16[2]",
        "1.weight": "bfloat16[2]",
        "1.bias": "bfloat16[2]",
        "1.running_mean": "bfloat16[2]",
        "1.running_var": "bfloat16[2]",
        "1.num_batches_tracked": "int64[]",
    }
    assert found.formats() == {"bfloat16": 16, "int64": 1}
    assert (found.seal, found.findings) == ("none", ())


def test_a_whole_module_of_torch_names_its_classes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "w.pt"
    torch.save(torch.nn.Linear(3, 2), path)
    (found,) = inspect_file(path).findings
    assert found.code == "C617"
    assert "torch.nn.modules.linear.Linear" in str(found.received)


def test_code_is_named_and_not_run(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for name, write in {
        "archive.pt": lambda p: torch.save({"state_dict": {"w": torch.zeros(2)}, "x": Evil()}, p),
        "legacy.pt": lambda p: torch.save(Evil(), p, _use_new_zipfile_serialization=False),
        "bare.pkl": lambda p: p.write_bytes(pickle.dumps([1, Evil()])),
        "old.pkl": lambda p: p.write_bytes(pickle.dumps(Evil(), protocol=2)),
    }.items():
        path = tmp_path / name
        write(path)
        (found,) = inspect_file(path).findings
        assert found.code == "C617", name
        assert "posix.system" in str(found.received), name
    assert str(inspect_file(tmp_path / "archive.pt").tensors["state_dict.w"]) == "float32[2]"


def test_a_lightning_checkpoint(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.ckpt"
    state = {
        "epoch": 2,
        "global_step": 17,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {"w": torch.ones(3)},
    }
    torch.save(state, path)
    found = inspect_file(path)
    assert found.kind == "Lightning checkpoint"
    assert (found.facts["epoch"], found.facts["global_step"], found.facts["lightning"]) == (2, 17, "2.6.6")


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    header = json.dumps(
        {"w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, "__metadata__": {"by": "hand"}}
    ).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    found = inspect_file(path)
    assert (found.kind, found.facts, str(found.tensors["w"])) == (
        "safetensors",
        {"by": "hand"},
        "bfloat16[2,3]",
    )
    path.write_bytes(path.read_bytes()[:-2])
    with_broken = inspect_file(path)
    assert with_broken.seal == "broken: it ends in the middle, or has grown"
    path.write_bytes((1 << 40).to_bytes(8, "little") + b"{" + bytes(40))
    with pytest.raises(ManifestError, match="C601 The checkpoint cannot be used: it ends in the middle"):
        inspect_file(path)


def keras_archive(path: Path, config: Any) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1", "date_saved": "today"}))
        archive.writestr("config.json", json.dumps(config))
    return path


def test_a_keras_model(tmp_path: Path) -> None:
    policy = {"class_name": "DTypePolicy", "config": {"name": "mixed_bfloat16"}}
    layers = [{"class_name": "Dense", "config": {"dtype": policy}}]
    path = keras_archive(tmp_path / "m.keras", {"class_name": "Sequential", "config": {"layers": layers}})
    found = inspect_file(path)
    assert found.kind == "Keras model"
    assert found.facts["dtype policies"] == "mixed_bfloat16"
    assert found.facts["model"] == "Sequential"
    layers.append({"class_name": "Lambda", "config": {"function": "gASV"}})
    path = keras_archive(tmp_path / "e.keras", {"class_name": "Sequential", "config": {"layers": layers}})
    (told,) = inspect_file(path).findings
    assert (told.code, told.received) == ("C617", "Lambda layer")


def test_an_hdf5_of_keras_own_weights(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "w.weights.h5"
    with h5py.File(path, "w") as file:
        file["layers/dense/vars/0"] = [[1.0, 2.0]]
    found = inspect_file(path)
    assert (found.kind, str(found.tensors["layers/dense/vars/0"])) == ("HDF5 weights", "float64[1,2]")
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ManifestError, match="its weights are no HDF5"):
        inspect_file(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "C601 The checkpoint cannot be used: it is empty."),
        (
            b"hello, world, this is text",
            "C616 The file is no checkpoint. Expected torch, Lightning, safetensors",
        ),
        (b"PK\x03\x04" + bytes(100), "C601 The checkpoint cannot be used: it ends in the middle."),
        (b"\x80\x04" + b"\xff" * 50, "C601 The checkpoint cannot be used"),
    ],
)
def test_what_is_no_checkpoint(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(ManifestError) as error:
        inspect_file(path)
    assert said in str(error.value)


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="it is a folder"):
        inspect_file(tmp_path)
    with pytest.raises(ManifestError, match="no such file"):
        inspect_file(tmp_path / "none.pt")


# --- pickles ----------------------------------------------------------------------------------------------


def test_plain_values_are_read_as_they_are() -> None:
    value = {"a": [1, 2.5, None, True], "b": (b"x", "y"), "c": {1, 2}}
    assert read(pickle.dumps(value, protocol=4)) == value


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x96" + (1 << 50).to_bytes(8, "little") + b".",  # a bytearray of a petabyte
        b"\x80\x04r\xff\xff\xff\x7fN.",  # a memo of two thousand million places
        b"\x80\x04" + b"(" * 100_000 + b".",
        b"\x80\x04\x82\x01.",  # an extension by number
        b"cos\nsystem\n(S'touch pwned'\ntR.",
        b"cbuiltins\neval\n(V__import__('os').system('touch pwned')\ntR.",
        b"(S'touch pwned'\nios\nsystem\n.",
        b"",
        b".",
    ],
)
def test_pickles_that_mean_harm(data: bytes) -> None:
    with contextlib.suppress(Unreadable):
        read(data)
    with contextlib.suppress(Unreadable):
        globals_of(data)
