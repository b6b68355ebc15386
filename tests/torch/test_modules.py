"""A torch model described as plain data."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from castiron.diagnostics import PlanError
from castiron.torch.modules import class_names, describe, family


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight


class MyNorm(nn.LayerNorm):
    pass


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.LSTM(2, 2), "lstm"),
        (nn.LSTMCell(2, 2), "lstm"),
        (nn.GRU(2, 2), "gru"),
        (nn.GRUCell(2, 2), "gru"),
        (nn.RNN(2, 2), "rnn"),
        (nn.Linear(2, 2), "matmul"),
        (nn.Bilinear(2, 2, 2), "matmul"),
        (nn.Conv1d(1, 1, 1), "conv"),
        (nn.ConvTranspose2d(1, 1, 1), "conv"),
        (nn.BatchNorm1d(2), "normalization"),
        (nn.SyncBatchNorm(2), "normalization"),
        (nn.InstanceNorm2d(2), "normalization"),
        (nn.GroupNorm(1, 2), "normalization"),
        (nn.RMSNorm(2), "normalization"),
        (MyNorm(2), "normalization"),
        (nn.MultiheadAttention(2, 1), "attention"),
        (nn.EmbeddingBag(2, 2), "embedding"),
        (nn.LogSoftmax(-1), "softmax"),
        (nn.ReLU(), None),
        (nn.Sequential(), None),
    ],
)
def test_the_family_follows_the_class(module: nn.Module, expected: str | None) -> None:
    assert family(module) == expected


def test_every_module_is_listed_with_what_it_holds_itself() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    layers = {layer.path: layer for layer in describe(model)}
    assert list(layers) == ["", "0", "1"]
    assert (layers[""].type, layers[""].parameters) == ("Sequential", ())
    assert layers["1"].bases == ()
    assert layers["0"].bases == ("_BatchNorm", "_NormBase")
    assert [(p.name, p.dtype, p.shape, p.trainable) for p in layers["1"].parameters] == [
        ("1.weight", "float32", (2, 3), True),
        ("1.bias", "float32", (2,), True),
    ]
    assert [(b.name, b.dtype) for b in layers["0"].buffers] == [
        ("0.running_mean", "float32"),
        ("0.running_var", "float32"),
        ("0.num_batches_tracked", "int64"),
    ]


def test_a_tied_parameter_names_where_it_was_met_first() -> None:
    layers = {layer.path: layer for layer in describe(Tied())}
    assert layers["embedding"].parameters[0].same_as is None
    assert layers["head"].parameters[0].same_as == "embedding.weight"


def test_a_shared_layer_is_listed_under_both_paths() -> None:
    shared = nn.Linear(2, 2)
    layers = describe(nn.Sequential(shared, nn.ReLU(), shared))
    assert [layer.path for layer in layers] == ["", "0", "1", "2"]
    assert [p.same_as for p in layers[3].parameters] == ["0.weight", "0.bias"]


def test_meta_tensors_and_frozen_parameters_are_described() -> None:
    with torch.device("meta"):
        model = nn.Linear(5, 3, dtype=torch.bfloat16)
    model.weight.requires_grad_(False)
    weight, bias = describe(model)[0].parameters
    assert (weight.dtype, weight.shape, weight.trainable, bias.trainable) == (
        "bfloat16",
        (3, 5),
        False,
        True,
    )


def test_a_parametrized_layer_keeps_its_own_name() -> None:
    layer = parametrizations.weight_norm(nn.Linear(3, 3))
    layers = {info.path: info for info in describe(nn.Sequential(layer))}
    assert (layers["0"].type, layers["0"].family) == ("Linear", "matmul")
    names = [p.name for p in layers["0.parametrizations.weight"].parameters]
    assert names == ["0.parametrizations.weight.original0", "0.parametrizations.weight.original1"]


def test_class_names_end_before_module() -> None:
    assert class_names(MyNorm(2)) == ("MyNorm", "LayerNorm")
    assert class_names(nn.Module()) == ("Module",)


def test_a_lazy_parameter_is_refused_by_name() -> None:
    model = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(PlanError) as refused:
        describe(model)
    assert str(refused.value.findings[0]) == (
        "L209 parameter '0.weight' of a LazyLinear has no shape yet. Expected initialised parameters. "
        "Received an uninitialised (lazy) parameter '0.weight' at layer '0'. "
        "Run one batch through the model first, or give the layer its sizes."
    )
