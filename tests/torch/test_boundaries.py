"""Boundaries of recurrent layers, where torch's autocast hands on a different format on each path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from castiron.torch.inputs import cast_inputs
from castiron.torch.precision import Precision

Applied = Callable[..., Precision]
LAYERS = [nn.LSTM, nn.GRU, nn.RNN]
FORMATS = [("bf16-mixed", torch.bfloat16), ("fp16-mixed", torch.float16)]


def formats(state: Any) -> set[torch.dtype]:
    return {t.dtype for t in (state if isinstance(state, tuple) else (state,))}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("preset", "dtype"), FORMATS)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_recurrent_layers_compute_and_hand_on_the_declared_format(
    applied: Applied, layer: type[nn.RNNBase], preset: str, dtype: torch.dtype, packed: bool
) -> None:
    """torch alone: LSTM 16 bits, packed LSTM and GRU float32; a float16 LSTM on float32 input fails."""
    model = layer(8, 8, batch_first=True, bidirectional=True)
    precision = applied(model, preset)
    x = torch.randn(3, 5, 8, requires_grad=True)
    given = pack_padded_sequence(x, torch.tensor([5, 4, 2]), batch_first=True) if packed else x
    reference, _ = model(given)
    with precision.forward_context():
        out, state = model(given)
    data = out.data if isinstance(out, PackedSequence) else out
    expected = reference.data if isinstance(reference, PackedSequence) else reference
    assert data.dtype is dtype
    assert formats(state) == {dtype}
    torch.testing.assert_close(data.float(), expected, rtol=0.05, atol=0.02)
    data.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype is torch.float32
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in model.parameters())


@pytest.mark.parametrize("layer", LAYERS)
def test_a_state_of_another_format_is_cast_too(applied: Applied, layer: type[nn.RNNBase]) -> None:
    model = layer(8, 8)
    precision = applied(model, "bf16-mixed")
    state: Any = torch.zeros(1, 3, 8)
    state = (state, state.bfloat16()) if layer is nn.LSTM else state
    with precision.forward_context():
        out, new = model(torch.randn(5, 3, 8), state)
        again, _ = model(torch.randn(5, 3, 8), new)
    assert out.dtype is again.dtype is torch.bfloat16


@pytest.mark.parametrize("layer", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_carry_their_state_in_the_declared_format(applied: Applied, layer: Any) -> None:
    model = layer(8, 8)
    precision = applied(model, "bf16-mixed")
    state = None
    with precision.forward_context():
        for x in torch.randn(3, 2, 8):
            state = model(x, state)
    assert formats(state) == {torch.bfloat16}


def test_a_wide_recurrent_layer_in_a_narrow_model(applied: Applied) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LSTM(8, 8))
    precision = applied(model, "bf16-mixed", layers={"1": {"compute": "float32"}})
    with precision.forward_context():
        out, state = model(torch.randn(5, 3, 8))
    assert out.dtype is torch.float32
    assert formats(state) == {torch.float32}


def test_a_rule_for_a_container_reaches_operations_of_its_own_forward(applied: Applied) -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.seen: list[torch.dtype] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            product = x @ x.mT  # no layer: by autocast it would be 16 bits
            self.seen += [x.dtype, product.dtype]
            return self.linear(x)

    model = nn.Sequential(nn.Linear(4, 4), Head())
    precision = applied(model, "bf16-mixed", layers={"1": {"compute": "float32"}})
    with precision.forward_context():
        out = model(torch.randn(4, 4))
        assert model[0](torch.randn(4, 4)).dtype is torch.bfloat16, "autocast is on again"
    assert model[1].seen == [torch.float32, torch.float32]
    assert out.dtype is torch.float32


def test_autocast_is_on_again_after_a_layer_raised(applied: Applied) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    precision = applied(model, "bf16-mixed", layers={"1": {"compute": "float32"}})
    with precision.forward_context():
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            model[1](torch.randn(2, 3))
        assert torch.is_autocast_enabled("cpu")


def test_nested_outputs_are_cast_and_keys_kept(applied: Applied) -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            return {"logits": x.bfloat16(), "ids": x.long(), "pair": (x.double(), [x.half()])}

    model = nn.Sequential(nn.Linear(2, 2), Two())
    precision = applied(model, "bf16-mixed", layers={"1": {"output": "float32"}})
    with precision.forward_context():
        out = model(torch.randn(2, 2))
    assert out["logits"].dtype is torch.float32
    assert out["ids"].dtype is torch.int64
    assert out["pair"][0].dtype is torch.float64, "float64 is reported by the audit, not hidden"
    assert out["pair"][1][0].dtype is torch.float32


def test_transformer_layers_in_evaluation_have_no_fast_path_around_the_plan(applied: Applied) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    precision = applied(model, "float32", layers={"layers.0.self_attn": {"compute": "bfloat16"}})
    seen = []
    model.layers[0].self_attn.register_forward_hook(lambda m, a, out: seen.append(out[0].dtype))
    with torch.no_grad(), precision.forward_context():
        assert model(torch.randn(2, 3, 8)).dtype is torch.float32
    assert seen == [torch.bfloat16]


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.slope = nn.PReLU()
        self.up = nn.ConvTranspose2d(8, 8, 2)
        self.group = nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, 4)
        self.log_softmax = nn.LogSoftmax(-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.group(self.up(self.slope(self.norm(self.conv(x)))))
        return self.log_softmax(self.head(x.mean((2, 3))))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[torch.Tensor, ...]]] = {
    "conv net": (ConvNet, (torch.ones(2, 3, 8, 8),)),
    "transformer": (
        lambda: nn.Transformer(16, 2, 1, 1, 32, batch_first=True),
        (torch.ones(2, 4, 16), torch.ones(2, 3, 16)),
    ),
    "embedding bag": (
        lambda: nn.Sequential(nn.EmbeddingBag(10, 4), nn.Linear(4, 2)),
        (torch.tensor([[0, 1, 2]]),),
    ),
    "bilinear": (lambda: nn.Bilinear(4, 4, 3), (torch.ones(2, 4), torch.ones(2, 4))),
}


@pytest.mark.parametrize("preset", ["bf16-mixed", "fp16-mixed", "bf16-true", "fp16-true", "float64"])
@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_ordinary_models_run_under_every_preset(
    applied: Applied, name: str, preset: str, training: bool
) -> None:
    make, inputs = MODELS[name]
    model = make().train(training)
    precision = applied(model, preset)
    given = cast_inputs(inputs, precision.plan.policy)
    with precision.forward_context():
        out = model(*given)
    # A softmax at the end is an island, and is not rounded right after it.
    last = [row for row in precision.plan.rows if row.family is not None][-1]
    expected = last.output if last.family == "softmax" else precision.plan.policy.output
    assert str(out.dtype) == f"torch.{expected}"
    out.float().square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("layer", LAYERS)
def test_cudnn_layers_follow_the_plan(applied: Applied, layer: type[nn.RNNBase]) -> None:
    model = layer(8, 8, batch_first=True).cuda()
    precision = applied(model, "bf16-mixed")
    with precision.forward_context("cuda"):
        out, state = model(torch.randn(3, 5, 8, device="cuda"))
    assert out.dtype is torch.bfloat16
    assert formats(state) == {torch.bfloat16}
    out.float().sum().backward()
