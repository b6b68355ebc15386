"""Batches to safetensors and back: every format, every nesting, bit for bit, and nothing executed."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from castiron.torch.incident_tensors import (
    DamagedTensors,
    LeftOut,
    pack,
    random_state,
    set_random_state,
    unpack,
)


def back(tree: Any, **where: Any) -> Any:
    data, structure = pack(tree)
    return unpack(data, json.loads(json.dumps(structure, allow_nan=False)), **where)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    def bits(t: torch.Tensor) -> torch.Tensor:
        return t.detach().contiguous().reshape(-1).view(torch.uint8)

    return a.dtype is b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


FORMATS = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
    torch.bool, torch.complex64, torch.complex128,
)  # fmt: skip


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_every_format(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.tensor(3.0).expand(shape).to(dtype)
    assert same_bits(back({"x": tensor})["x"], tensor)


def test_values_that_are_no_numbers_keep_their_bits() -> None:
    patterns = torch.tensor(
        [0x7FC00001, 0x7F800001, -1, 0x7F800000, 0x00000001, -0x80000000], dtype=torch.int32
    )
    tensor = patterns.view(torch.float32)
    assert torch.equal(back([tensor])[0].view(torch.int32), patterns)
    found = back([float("nan"), float("inf"), -float("inf"), 1e-320, complex(0, float("inf"))])
    assert str(found) == "[nan, inf, -inf, 1e-320, infj]"


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass
class Example:
    x: torch.Tensor
    name: str


def test_trees() -> None:
    tree = {
        "x": torch.arange(6.0).reshape(2, 3),
        3: [torch.ones(2), (None, True, 7, "text", b"\0\xff")],
        "deep": OrderedDict(a=Pair(torch.zeros(1), 2), b={1, 2}),
        "example": Example(torch.full((2,), 5.0), "n"),
        "": (),
        ("a", 1): torch.tensor(4),
    }
    found = back(tree)
    assert list(found) == list(tree)
    assert torch.equal(found["x"], tree["x"])
    assert found[3][1] == (None, True, 7, "text", b"\0\xff")
    assert found["deep"]["a"].second == 2
    assert torch.equal(found["deep"]["a"].first, torch.zeros(1))
    assert found["deep"]["b"] == {1, 2}
    assert found["example"].name == "n"
    assert torch.equal(found["example"].x, torch.full((2,), 5.0))
    assert (found[""], int(found["a", 1])) == ((), 4)


@pytest.mark.parametrize("tree", [torch.ones(2), None, [], {}, 4, (torch.ones(1), torch.ones(1))])
def test_small_trees(tree: Any) -> None:
    found = back(tree)
    assert type(found) is type(tree)
    assert str(found) == str(tree)


def test_shared_and_strided_memory() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tree = {
        "base": base, "again": base, "t": base.T, "row": base[1], "wide": torch.ones(1).expand(5),
        "conj": torch.tensor([1 + 2j]).conj(), "negative": torch.tensor([1 + 2j]).conj().imag,
    }  # fmt: skip
    found = back(tree)
    assert found["again"] is found["base"]
    for name, tensor in tree.items():
        assert torch.equal(found[name], tensor.resolve_conj()), name
    data, _ = pack({"row": torch.zeros(1_000_000)[:2]})
    assert len(data) < 500, "only what is seen is stored"


def test_gradients_are_wanted_again_and_parameters_are_plain_tensors() -> None:
    found = back([torch.ones(2, requires_grad=True), torch.nn.Parameter(torch.ones(1)), torch.ones(1)])
    assert [t.requires_grad for t in found] == [True, True, False]


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_sequences_and_sparse_tensors() -> None:
    packed = pack_sequence([torch.ones(2), torch.zeros(3)], enforce_sorted=False)
    found = back({"p": packed})["p"]
    assert isinstance(found, PackedSequence)
    assert all(torch.equal(a, b) for a, b in zip(found, packed, strict=True))
    sparse = torch.sparse_coo_tensor(torch.tensor([[0, 2, 2]]), torch.tensor([1.0, 2.0, 3.0]), (4,))
    assert torch.equal(back([sparse])[0].to_dense(), sparse.to_dense())
    assert not back([sparse])[0].is_coalesced()
    assert torch.equal(back(sparse.coalesce()).to_dense(), sparse.to_dense())


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_compressed_rows() -> None:
    dense = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    assert torch.equal(back(dense.to_sparse_csr()).to_dense(), dense)


def test_numpy() -> None:
    tree = {
        "a": np.arange(3, dtype=">f4"), "b": np.float16(2.5), "c": np.array(["x", "yy"]), "d": np.array(1.0),
        "e": np.arange(6).reshape(2, 3)[:, ::2], "f": np.int64(3), "g": np.zeros((0, 2), np.float32),
    }  # fmt: skip
    found = back(tree)
    for name, value in tree.items():
        assert np.array_equal(found[name], value), name
        assert np.asarray(found[name]).shape == np.asarray(value).shape, name
        assert isinstance(found[name], np.ndarray) == isinstance(value, np.ndarray), name
    assert found["b"].dtype == np.float16


def test_what_is_no_data_is_left_out() -> None:
    found = back({"g": torch.Generator(), "f": len, "m": torch.ones(1, device="meta"), "o": np.array([{}])})
    assert all(isinstance(v, LeftOut) for v in found.values())
    assert found["g"].type == "torch._C.Generator"


def test_tensors_that_were_on_another_device_stay_on_the_cpu() -> None:
    data, structure = pack({"x": torch.ones(2), "length": torch.tensor([1])})
    structure["dict"][0][1]["device"] = "cuda"
    moved = unpack(data, structure, device="meta", of="cuda")
    assert (moved["x"].device.type, moved["length"].device.type) == ("meta", "cpu")


def test_named_tensors_keep_their_names_in_the_file(tmp_path: Path) -> None:
    weight = torch.randn(3, 2, dtype=torch.bfloat16)
    given = {"a.weight": weight, "b.weight": weight.clone(), "scalar": torch.tensor(1.0)}
    path = tmp_path / "x.safetensors"
    data, structure = pack(given)
    path.write_bytes(data)
    assert all(same_bits(load_file(path)[n], t) for n, t in given.items())
    assert all(same_bits(unpack(path, structure)[n], t) for n, t in given.items())


def test_the_state_of_an_optimizer() -> None:
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    other = torch.optim.AdamW(layer.parameters(), fused=True)
    other.load_state_dict(back(optimizer.state_dict()))
    assert str(other.state_dict()) == str(optimizer.state_dict())


@pytest.mark.parametrize("data", [b"", b"\0" * 40, b"\xff" * 40, pack({"x": torch.ones(4)})[0][:-3]])
def test_bytes_that_are_no_safetensors(data: bytes) -> None:
    with pytest.raises(DamagedTensors, match="it is not safetensors"):
        unpack(data, {"value": 1})


@pytest.mark.parametrize(
    "structure",
    [
        {"tensor": "y", "device": "cpu"}, {"tensor": "x"}, {"_tensors": 1}, {"__class__": 1}, {"dict": 3},
        {"packed": []}, {"named": [], "names": ["def"], "of": "X"}, {"call": "os.system"},
        {"tensor": "x", "device": "cpu", "raw": "complex128", "shape": [9]},
    ],
)  # fmt: skip
def test_structures_that_do_not_fit(structure: dict[str, Any]) -> None:
    data, _ = pack({"x": torch.ones(4)})
    with pytest.raises(DamagedTensors):
        unpack(data, structure)


def test_random_numbers_come_again() -> None:
    torch.manual_seed(5)
    torch.randn(3)
    kept = back(random_state())
    drawn = torch.randn(4)
    assert set_random_state({**kept, "cuda:9": kept["cpu"]}) == ["cuda:9"]
    assert torch.equal(torch.randn(4), drawn)
