"""A look at a model: what it sees, and that nothing of the model is changed by it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from castiron.torch import looking
from castiron.torch.looking import look, seen
from castiron.training.side import SAMPLE, sampled


class Drawing(nn.Module):
    """Dropout of every kind: a layer's, a recurrent one's, and one in the code of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, num_layers=2, dropout=0.5)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(x)
        y = self.drop(torch.relu(self.norm(y[-1])))
        return self.head(F.dropout(y, 0.5, self.training))


def made(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    return lambda: model(x).square().mean()


def test_layers_in_order_and_gradients_backwards() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    x = torch.randn(3, 5)
    found = look(model, made(model, x), contextlib.nullcontext, step=7)
    assert found.step == 7
    assert list(found.seen["activations"]) == ["0", "1", "2"], "the container hands on what '2' does"
    assert list(found.seen["activation gradients"]) == ["2", "1", "0"]
    assert list(found.seen["gradients"]) == ["2.weight", "0.bias", "0.weight"]
    loss = made(model, x)()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        stored = found.seen["gradients"][name]
        assert stored.format == "float32"
        np.testing.assert_array_equal(stored.values, parameter.grad.reshape(-1).numpy())
    y = model(x).detach()
    np.testing.assert_array_equal(found.seen["activations"]["2"].values, y.reshape(-1).numpy())
    gradient = found.seen["activation gradients"]["2"].values
    np.testing.assert_allclose(gradient, (2 * y / y.numel()).reshape(-1).numpy())
    product = found.products["0"]
    assert product.n == 5
    with torch.no_grad():
        bound = x.abs() @ model[0].weight.abs().T + model[0].bias.abs()
        assert product.condition == pytest.approx(float(bound.norm() / model[0](x).norm()))


def test_nothing_is_drawn_and_nothing_is_changed() -> None:
    torch.manual_seed(0)
    model = Drawing().train()
    x = torch.randn(5, 8, 4)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    generator = torch.get_rng_state()
    first = look(model, made(model, x), contextlib.nullcontext, step=0)
    assert torch.equal(generator, torch.get_rng_state())
    assert first.random == ()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert model.lstm.dropout == 0.5
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    torch.rand(3)
    again = look(model, made(model, x), contextlib.nullcontext, step=0)
    for name, tensor in first.seen["activations"].items():
        np.testing.assert_array_equal(tensor.values, again.seen["activations"][name].values)
    # batch normalization is that of training
    y = first.seen["activations"]["norm"].values.reshape(8, 6)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-6)
    assert {"lstm", "lstm[1]", "lstm[2]"} <= set(first.seen["activations"])


class Always(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, True)


def test_who_draws_all_the_same_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Always())
    found = look(model, made(model, torch.ones(2, 3)), contextlib.nullcontext, step=0)
    assert found.random == ("1",)


def test_a_scale_under_which_gradients_overflow_is_lowered() -> None:
    model = nn.Linear(2, 1, bias=False).half()
    with torch.no_grad():
        model.weight.fill_(1.0)
    x = torch.full((1, 2), 100.0, dtype=torch.float16)
    found = look(model, lambda: model(x).float().sum(), contextlib.nullcontext, step=0, scale=65536.0)
    np.testing.assert_array_equal(found.seen["gradients"]["weight"].values, [100.0, 100.0])


def test_what_is_kept_for_backward_is_counted_once() -> None:
    model = nn.Linear(16, 4, bias=False)
    x = torch.randn(32, 16)
    found = look(model, lambda: (model(x) * model(x)).sum(), contextlib.nullcontext, step=0)
    # x once, and the two products; the weight is no part of it
    assert found.saved_bytes == 4 * (32 * 16 + 2 * 32 * 4)
    assert list(found.seen["activations"]) == ["", " (call 2)"]


def test_large_tensors_are_sampled_evenly() -> None:
    x = torch.arange(3 * SAMPLE, dtype=torch.float64)
    found = seen(x)
    np.testing.assert_array_equal(found.values, sampled(x.numpy()))
    assert (found.values[0], found.values[-1], found.values.size) == (0, 3 * SAMPLE - 1, SAMPLE)
    small = torch.ones(5, dtype=torch.bfloat16)
    kept = seen(small)
    small.zero_()
    assert (kept.format, kept.values.dtype, kept.values.tolist()) == ("bfloat16", np.float32, [1.0] * 5)


def test_a_module_called_too_often_is_seen_a_few_times() -> None:
    model = nn.Linear(2, 2)

    def forward() -> Tensor:
        x = torch.ones(1, 2)
        for _ in range(20):
            x = model(x)
        return x.sum()

    found = look(model, forward, contextlib.nullcontext, step=0)
    assert len(found.seen["activations"]) == looking._CALLS
