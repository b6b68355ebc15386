"""What modules hand on is noted at their boundaries, compiled or not, and names the module."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from castiron.torch.activations import ActivationWatch
from castiron.torch.guard import StepGuard

NAN, INF = float("nan"), float("inf")


class Scores(nn.Module):
    """Masks on purpose, and hides it from what comes after."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
        self.mask = Mask()
        self.recurrent = nn.LSTM(3, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.recurrent(self.mask(self.first(x)).softmax(-1))
        return states.sum()


class Mask(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.masked_fill(torch.tensor([False, False, True]), -INF)


def watched(module: nn.Module) -> tuple[StepGuard, ActivationWatch]:
    guard = StepGuard(module, ("activations",))
    assert guard._activations is not None
    return guard, guard._activations


def test_minus_infinity_of_a_mask_is_on_purpose_where_it_was_there_from_the_start() -> None:
    model = Scores()
    guard, _ = watched(model)
    for _ in range(2):
        guard.begin()
        model(torch.randn(2, 4, 3))
        assert not guard.verdict().bad
    with torch.no_grad():
        model.recurrent.bias_ih_l0.fill_(NAN)
    guard.begin()
    model(torch.randn(2, 4, 3))
    assert guard.verdict().seen == {"activations": ("", "recurrent")}


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_module_is_named_whatever_the_value(value: float, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Identity(), nn.Hardtanh())
    guard, watch = watched(model)
    guard.begin()
    model(torch.ones(3, dtype=dtype))
    assert not guard.verdict().bad
    guard.begin()
    model(torch.tensor([1.0, value, 0.0], dtype=dtype))
    expected = ("0", "1") if value != value else ("0",)
    assert guard.verdict().seen == {"activations": expected}
    assert watch.names == ("0", "1")


def test_large_finite_values_and_integers_raise_no_alarm() -> None:
    model = nn.Identity()
    guard, _ = watched(model)
    guard.begin()
    model(torch.full((1000,), 3e38))
    model(torch.arange(3))
    model(torch.empty(0))
    assert not guard.verdict().bad


def test_every_micro_batch_counts_and_none_after_the_step() -> None:
    model = nn.Identity()
    guard, _ = watched(model)
    guard.begin()
    model(torch.ones(2))
    assert not guard.verdict().bad
    guard.begin()
    model(torch.tensor([NAN]))
    model(torch.ones(2))
    assert guard.flag() == 1
    guard.begin()
    guard.end()
    model(torch.tensor([NAN]))
    assert guard.flag() == 0


def test_watched_models_can_be_copied_pickled_and_let_go() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    guard, _ = watched(model)
    guard.begin()
    copy.deepcopy(model)(torch.full((1, 2), NAN))
    pickle.loads(pickle.dumps(model))(torch.full((1, 2), NAN))
    assert guard.flag() == 0
    guard.release()
    model(torch.full((1, 2), NAN))
    assert guard.flag() == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_is_watched_too() -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    guard, _ = watched(model)
    compiled = torch.compile(model)
    for _ in range(2):
        guard.begin()
        compiled(torch.ones(3, 2))
        assert not guard.verdict().bad
    with torch.no_grad():
        model[0].bias[0] = INF
    guard.begin()
    compiled(torch.ones(3, 2))
    assert "0" in guard.verdict().seen["activations"]
