"""A batch before it enters the model."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from castiron.data import Field, Schema
from castiron.diagnostics import DataError
from castiron.policy import PrecisionPolicy
from castiron.torch.inputs import cast_inputs
from castiron.torch.loss import to_loss_dtype

NO_ISLANDS = dict.fromkeys(("softmax", "normalization", "reductions", "exponentials"), None)


def policy(preset: str, **overrides: Any) -> PrecisionPolicy:
    return PrecisionPolicy.preset(preset, **overrides)


def floats(*dtypes: torch.dtype) -> list[torch.Tensor]:
    return [torch.ones(2, dtype=d) for d in dtypes]


ALL = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        (policy("float32"), torch.float32),
        (policy("tf32"), torch.float32),
        (policy("bf16-mixed"), torch.float32),
        (policy("fp16-mixed"), torch.float32),
        (policy("float64"), torch.float64),
        (policy("bf16-true"), torch.float32),  # the layers narrow it: it may be a target
        (policy("bf16-true", islands=NO_ISLANDS), torch.bfloat16),
        (policy("fp16-true", islands=NO_ISLANDS), torch.float16),
    ],
    ids=lambda p: p.label if isinstance(p, PrecisionPolicy) else str(p),
)
def test_floats_become_what_the_first_layer_takes(declared: PrecisionPolicy, expected: torch.dtype) -> None:
    assert {t.dtype for t in cast_inputs(floats(*ALL), declared)} == {expected}


@pytest.mark.parametrize("preset", ["float32", "bf16-mixed", "bf16-true", "float64"])
def test_integers_and_booleans_are_never_touched(preset: str) -> None:
    batch = {
        "ids": torch.tensor([16777217]),
        "small": torch.tensor([3], dtype=torch.uint8),
        "mask": torch.tensor([True]),
        "length": np.array([5]),
    }
    cast = cast_inputs(batch, policy(preset))
    assert {k: v.dtype for k, v in cast.items()} == {
        "ids": torch.int64,
        "small": torch.uint8,
        "mask": torch.bool,
        "length": torch.int64,
    }
    assert cast["ids"] is batch["ids"]
    assert cast["ids"].item() == 16777217


SCHEMA = Schema.of(
    Field(name="x", role="feature", dtype="float32"),
    Field(name="y", role="target", dtype="float32"),
    Field(name="w", role="weight", dtype="float32"),
    Field(name="label", role="target", dtype="int64"),
)


@pytest.mark.parametrize(
    ("preset", "feature"),
    [("bf16-true", torch.bfloat16), ("fp16-true", torch.float16), ("bf16-mixed", torch.float32)],
)
def test_targets_are_not_narrowed_where_roles_are_known(preset: str, feature: torch.dtype) -> None:
    batch = {
        "x": torch.full((2,), 3.14159),
        "y": torch.full((2,), 1234.567),
        "w": torch.ones(2),
        "label": torch.tensor([0, 1]),
        "row": torch.tensor([7, 8]),
    }
    cast = cast_inputs(batch, policy(preset), SCHEMA)
    assert {k: v.dtype for k, v in cast.items()} == {
        "x": feature,
        "y": torch.float32,
        "w": feature,
        "label": torch.int64,
        "row": torch.int64,
    }
    assert cast["y"] is batch["y"]


def test_a_target_becomes_the_loss_dtype_from_either_side() -> None:
    for dtype in ALL:
        cast = cast_inputs({"y": torch.ones(1, dtype=dtype)}, policy("bf16-mixed"), SCHEMA)
        assert cast["y"].dtype is torch.float32
    assert cast_inputs({"y": torch.ones(1)}, policy("float32", loss="float64"), SCHEMA)["y"].dtype is (
        torch.float64
    )


class Pair(NamedTuple):
    x: torch.Tensor
    label: torch.Tensor


@dataclass
class Batch:
    x: Any
    extra: Any = None


def test_every_container_is_looked_into_and_keeps_its_type() -> None:
    wide = torch.ones(2, dtype=torch.float64)
    batch = {
        "list": [wide, (wide, "text", None, 3)],
        "pair": Pair(wide, torch.tensor([1])),
        "class": Batch(wide),
        "ordered": OrderedDict(a=wide),
        "packed": pack_sequence([wide, wide[:1]]),
    }
    cast = cast_inputs(batch, policy("float32"))
    assert cast["list"][1][0].dtype is torch.float32
    assert cast["list"][1][1:] == ("text", None, 3)
    assert type(cast["pair"]) is Pair
    assert cast["pair"].x.dtype is torch.float32
    assert cast["class"].x.dtype is torch.float32
    assert type(cast["ordered"]) is OrderedDict
    assert cast["packed"].data.dtype is torch.float32


def test_a_batch_that_fits_is_the_same_object() -> None:
    batch = {"x": torch.ones(2), "y": [torch.tensor([1])], "name": "a"}
    assert cast_inputs(batch, policy("float32")) is batch


def test_numpy_leaves_become_tensors() -> None:
    batch = {
        "x": np.ones((2, 3)),
        "swapped": np.ones(2, dtype=">f4"),
        "fixed": np.frombuffer(b"\x01\x02", dtype=np.uint8),
        "scalar": np.float64(0.5),
    }
    cast = cast_inputs(batch, policy("float32"))
    assert {k: (v.dtype, tuple(v.shape)) for k, v in cast.items()} == {
        "x": (torch.float32, (2, 3)),
        "swapped": (torch.float32, (2,)),
        "fixed": (torch.uint8, (2,)),
        "scalar": (torch.float32, ()),
    }


RAGGED = np.array([[1.0, 2.0], [3.0]], dtype=object)
MIXED = np.array([1.0, "N/A", 2.0], dtype=object)


NO_NUMBERS = (
    "a leaf of the batch holds no numbers. Expected a tensor, or an array of floats, integers or booleans. "
)
AS_NUMBERS = "Make it an array of one number format: np.asarray(x, dtype=np.float32); pad ragged rows."


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            {"x": [torch.ones(1), MIXED]},
            f"D117 {NO_NUMBERS}Received an array of Python objects: 'N/A' at field 'batch['x'][1][1]'. "
            + AS_NUMBERS,
        ),
        (
            {"x": RAGGED},
            f"D117 {NO_NUMBERS}Received an array of Python objects: [1.0, 2.0] at field 'batch['x'][0]'. "
            + AS_NUMBERS,
        ),
        (
            (np.array(["1.0", "2.0"]),),
            f"D101 {NO_NUMBERS}Received an array of text: np.str_('1.0') at field 'batch[0]'. "
            "Encode it as numbers before it enters the batch.",
        ),
    ],
)
def test_what_is_no_number_is_named_with_its_place(batch: Any, message: str) -> None:
    with pytest.raises(DataError) as refused:
        cast_inputs(batch, policy("float32"))
    assert str(refused.value.findings[0]) == message


def test_a_value_that_becomes_infinite_is_an_error() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 1e300]], dtype=torch.float64)
    with pytest.raises(DataError) as refused:
        cast_inputs(Batch(x=x), policy("float32"))
    found = refused.value.findings[0]
    assert found.sentence() == (
        "a value does not fit into float32. Expected magnitudes up to 3.40282e+38. "
        "Received 1e+300 (float64) at field 'batch.x[1][1]'."
    )
    with pytest.raises(DataError, match="D103 a value does not fit into float16"):
        cast_inputs({"x": torch.tensor([1e5])}, policy("fp16-true"), SCHEMA)
    infinite = torch.tensor([float("inf"), float("nan")], dtype=torch.float64)
    assert cast_inputs(infinite, policy("float32")).isinf()[0], "what was infinite before is not our doing"


# --- the loss -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_the_loss_has_the_declared_dtype_whatever_the_target_has(dtype: torch.dtype) -> None:
    outputs, target = torch.randn(4, dtype=torch.bfloat16), torch.rand(4).to(dtype)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        *to_loss_dtype((outputs, target), torch.float32)
    )
    assert loss.dtype is torch.float32


def test_class_numbers_stay_integers() -> None:
    tree = {"logits": torch.randn(2, 3, dtype=torch.float64), "classes": torch.tensor([0, 2])}
    cast = to_loss_dtype(tree, torch.float32)
    assert cast["logits"].dtype is torch.float32
    assert cast["classes"] is tree["classes"]
