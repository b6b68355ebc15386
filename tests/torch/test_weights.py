"""Weights of any origin into a model: verified first, cast only where that was said, and never run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from castiron.diagnostics import ManifestError
from castiron.policy import PrecisionPolicy, resolve
from castiron.torch import describe, device_capability, load_weights
from castiron.torch.manifest import weight_records
from castiron.torch.weights import export_weights, read_weights
from castiron.training.manifest import Manifest, of_training, read_manifest


def model(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def saved(path: Path, state: Any) -> Path:
    torch.save(state, path)
    return path


def refused(target: nn.Module, path: Path, *said: str, **options: Any) -> None:
    before = {n: v.clone() for n, v in target.state_dict().items()}
    with pytest.raises(ManifestError) as error:
        load_weights(target, path, **options)
    for words in said:
        assert words in str(error.value), str(error.value)
    assert all(torch.equal(before[n], v) for n, v in target.state_dict().items())


@pytest.mark.parametrize("form", ["state dict", "lightning", "wrapped", "safetensors"])
def test_every_kind_of_file_gives_the_same_weights(form: str, tmp_path: Path) -> None:
    source, target = model(), model()
    state = source.state_dict()
    path = tmp_path / "w.pt"
    if form == "state dict":
        torch.save(state, path)
    elif form == "lightning":
        torch.save({"state_dict": {f"model.{n}": v for n, v in state.items()}, "epoch": 3}, path)
    elif form == "wrapped":
        torch.save({f"module.{n}": v for n, v in state.items()}, path)
    else:
        path = tmp_path / "w.safetensors"
        save_file(state, path)
    assert load_weights(target, path) == []
    assert all(torch.equal(v, target.state_dict()[n]) for n, v in state.items())


def test_torch_casts_in_silence_and_this_does_not(tmp_path: Path) -> None:
    """The facts that the manifest is for, on the installed torch."""
    source = model()
    source[0].weight.data.fill_(1e6)
    path = saved(tmp_path / "w.pt", source.state_dict())
    plain = model().half()
    assert (
        str(plain.load_state_dict(torch.load(path, weights_only=True))) == "<All keys matched successfully>"
    )
    assert bool(plain[0].weight.isinf().all())  # type: ignore[operator]
    refused(
        model().half(), path,
        "C606 6 parameters and 2 buffers of the checkpoint are in another format.",
        "parameter  0.weight        float32     float16  (lossy)",
    )  # fmt: skip
    refused(
        model().half(), path,
        "C614 The checkpoint holds values that overflow in the format asked for.",
        "parameter  0.weight  float32     float16  12 of 12 values infinite",
        on_mismatch="cast",
    )  # fmt: skip


def test_what_a_cast_does_is_told(tmp_path: Path) -> None:
    source = nn.Linear(2, 1)
    source.weight.data = torch.tensor([[1.0, 1.001]])
    source.bias.data = torch.tensor([0.5])
    path = saved(tmp_path / "w.pt", source.state_dict())
    narrow = nn.Linear(2, 1).bfloat16()
    (told,) = load_weights(narrow, path, on_mismatch="cast")
    assert (told.code, told.severity) == ("C619", "warning")
    assert "weight  float32     bfloat16  rounded: 1 of 2 values, at most 0.001 of the value" in told.message
    assert "bias    float32     bfloat16  exact for these values" in told.message
    wide = nn.Linear(2, 1).double()
    (told,) = load_weights(wide, path, on_mismatch="cast")
    assert told.severity == "info"
    assert told.message.startswith("2 tensors of the checkpoint were cast, exactly.")
    assert torch.equal(wide.weight, source.weight.double())


def test_a_policy_says_which_formats_are_expected(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", model().bfloat16().state_dict())
    refused(model(), path, "C606", "0.weight", "bfloat16    float32  (exact)")
    load_weights(model(), saved(tmp_path / "f.pt", model().state_dict()), "bf16-mixed")


def test_names_and_shapes(tmp_path: Path) -> None:
    state = model().state_dict()
    del state["2.bias"]
    refused(model(), saved(tmp_path / "a.pt", state), "C608 The checkpoint lacks a parameter.", "'2.bias'")
    state = {**model().state_dict(), "more": torch.zeros(1)}
    refused(
        model(), saved(tmp_path / "b.pt", state), "C608 The checkpoint has, and the model has not,", "'more'"
    )
    refused(
        model(5), saved(tmp_path / "c.pt", model(4).state_dict()),
        "C607 5 parameters and 2 buffers of the checkpoint have another shape.",
        "Expected the shape [5, 3] for '0.weight'. Received [4, 3]",
    )  # fmt: skip


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", ["archive", "pickle", "legacy", "hidden"])
def test_code_in_a_file_is_not_run(form: str, tmp_path: Path) -> None:
    path, pwned = tmp_path / "w.pt", tmp_path / "pwned"
    if form == "archive":
        torch.save({"state_dict": Evil(pwned)}, path)
    elif form == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Evil(pwned)}))
    elif form == "legacy":
        torch.save(Evil(pwned), path, _use_new_zipfile_serialization=False)
    else:
        torch.save({**model().state_dict(), "x": [1, {"y": (Evil(pwned),)}]}, path)
    with pytest.raises(ManifestError) as error:
        load_weights(model(), path)
    assert not pwned.exists()
    assert "C617 The file asks its reader to run code, and was not loaded." in str(error.value)
    assert "Received posix.system" in str(error.value)


def test_a_file_without_weights(tmp_path: Path) -> None:
    refused(
        model(), saved(tmp_path / "a.pt", {"epoch": 3}), "C616 The file holds no weights.", "Received epoch"
    )
    refused(model(), saved(tmp_path / "b.pt", torch.zeros(3)), "C601", "it holds a Tensor, and no checkpoint")
    refused(model(), tmp_path / "none.pt", "C601 The checkpoint cannot be used: it is missing.")


# --- export -----------------------------------------------------------------------------------------------


def exported(folder: Path, policy: str = "float32") -> tuple[nn.Module, Path]:
    source = model()
    declared = PrecisionPolicy.preset(policy)
    plan, _ = resolve(declared, describe(source), device_capability("cpu"))
    names = {n for n, _ in source.named_buffers()}
    manifest = of_training(declared, plan, weight_records(source.state_dict(), names), model="Sequential")
    path = folder / "w.safetensors"
    export_weights(source.state_dict(), manifest, path)
    return source, path


def test_exported_weights_carry_their_manifest_and_come_back(tmp_path: Path) -> None:
    source, path = exported(tmp_path, "bf16-mixed")
    manifest = read_manifest(path)
    assert isinstance(manifest, Manifest)
    assert manifest.policy == str(PrecisionPolicy.preset("bf16-mixed"))
    assert manifest.plan["0"]["compute"] == "bfloat16"
    assert set(manifest.tensors) == {"parameters", "buffers"}
    assert set(load_file(path)) == set(source.state_dict())
    target = model()
    assert load_weights(target, path) == []
    assert torch.equal(target[0].weight, source[0].weight)  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_changed_bit_in_exported_weights_is_seen(tmp_path: Path) -> None:
    _, path = exported(tmp_path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    load_file(path)  # safetensors has no checksum
    refused(model(), path, "C620 The weights are not those that were exported.")
    path.write_bytes(bytes(data[:-3]))
    refused(model(), path, "C601 The checkpoint cannot be used: it ends in the middle")


def test_tied_weights_are_exported_under_each_name(tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    manifest = of_training(PrecisionPolicy.preset("float32"), None, weight_records(tied.state_dict(), ()))
    export_weights(tied.state_dict(), manifest, tmp_path / "t.safetensors")
    state, _ = read_weights(tmp_path / "t.safetensors")
    assert torch.equal(state["0.weight"], state["1.weight"])
