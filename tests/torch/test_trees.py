"""Tensors inside nested containers."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pack_sequence

from castiron.torch.trees import cast_floats, widen_floats

Pair = namedtuple("Pair", "a b")


@dataclass
class Output:
    logits: torch.Tensor
    name: str = "x"


@dataclass
class ModelOutput(OrderedDict):  # type: ignore[type-arg]
    """As transformers' outputs are: a dataclass that is an ordered mapping of its fields."""

    logits: torch.Tensor

    def __post_init__(self) -> None:
        self["logits"] = self.logits


def test_every_container_keeps_its_type() -> None:
    x = torch.ones(2)
    tree = {"p": Pair(x, 3), "l": [x, (x, None)], "d": Output(x), "o": OrderedDict(k=x), "m": ModelOutput(x)}
    cast = cast_floats(tree, torch.bfloat16)
    assert type(cast["p"]) is Pair
    assert cast["p"].a.dtype is torch.bfloat16
    assert cast["p"].b == 3
    assert type(cast["l"]) is list
    assert cast["l"][1][0].dtype is torch.bfloat16
    assert cast["d"].logits.dtype is torch.bfloat16
    assert type(cast["o"]) is OrderedDict
    assert type(cast["m"]) is ModelOutput
    assert cast["m"].logits.dtype is cast["m"]["logits"].dtype is torch.bfloat16


def test_what_needs_no_cast_is_the_same_object() -> None:
    tree = {"ids": torch.ones(2, dtype=torch.long), "l": [torch.ones(2)], "s": "text"}
    assert cast_floats(tree, torch.float32) is tree


def test_float64_is_left_for_the_audit_to_see() -> None:
    assert cast_floats(torch.ones(2, dtype=torch.float64), torch.bfloat16).dtype is torch.float64


def test_a_packed_sequence_keeps_its_order() -> None:
    packed = pack_sequence([torch.ones(2, 3), torch.ones(3, 3)], enforce_sorted=False)
    cast = cast_floats(packed, torch.bfloat16)
    assert cast.data.dtype is torch.bfloat16
    assert cast.batch_sizes is packed.batch_sizes
    assert cast.unsorted_indices is packed.unsorted_indices


def test_widening_touches_16_bits_alone() -> None:
    a, b = widen_floats(
        (torch.ones(1, dtype=torch.float16), torch.ones(1, dtype=torch.float64)), torch.float32
    )
    assert (a.dtype, b.dtype) == (torch.float32, torch.float64)
