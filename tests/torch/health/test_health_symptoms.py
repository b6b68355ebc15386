"""Planted diseases: what the monitor says of each."""

from __future__ import annotations

import pytest
import torch
from health_kit import codes, mlp, train
from torch import Tensor, nn

from castiron.diagnostics import Finding
from castiron.health.snapshot import ScaleHealth
from castiron.policy import PrecisionPolicy
from castiron.torch.health.monitor import HealthMonitor
from castiron.torch.updates import guard_updates

ONE = ScaleHealth("static", 1.0)


def test_float16_gradients_of_1e_8() -> None:
    """A float32 loss over float16 logits whose gradient is 1e-8 everywhere: lost in the cast back."""
    model = nn.Linear(8, 4).half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(32, 8).half()
    policy = PrecisionPolicy.preset("fp16-true", scaling={"kind": "static", "scale": 1})
    _, found = train(model, optimizer, lambda i: model(x).float().sum() * 1e-8, policy, scaling=ONE)
    assert codes(found) == ["N520"]
    (f,) = found
    assert f.evidence["share"] == 1
    k = f.evidence["scale_exponent"]
    assert 1e-8 * 2**k >= 6.1e-5 > 1e-8 * 2 ** (k - 2)
    assert str(f) == (
        "N520 100 % of the elements of the loss's gradient underflow to zero in float16 at a loss scale "
        "of 1. "
        f"Expected a loss scale of at least 2^{k}. Received gradients from 7.5e-09 to 1.0e-08 at the loss "
        f"(backward). Set `scaling: dynamic`, or `scaling: {{kind: static, scale: {2**k}}}`; "
        "bfloat16 needs none."
    )
    # and that scale does it
    scaled = train(model, optimizer, lambda i: model(x).float().sum() * 1e-8 * 2**k, policy, scaling=ONE)[1]
    assert codes(scaled) == []


def test_float16_gradients_that_are_zero_without_a_trace() -> None:
    model = nn.Linear(8, 4).half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(32, 8).half()
    policy = PrecisionPolicy.preset("fp16-true", scaling={"kind": "static", "scale": 1})
    _, found = train(model, optimizer, lambda i: (model(x) * 1e-8).sum(), policy, scaling=ONE)
    assert codes(found) == ["N520"]
    assert "every gradient" in str(found[0])
    assert "2^16 (nothing is left to measure it by)" in str(found[0])


def test_float16_gradients_that_are_subnormal() -> None:
    model = nn.Linear(8, 4).half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(32, 8).half()
    policy = PrecisionPolicy.preset("fp16-true", scaling={"kind": "static", "scale": 1})
    _, found = train(model, optimizer, lambda i: model(x).float().sum() * 2e-6, policy, scaling=ONE)
    assert codes(found) == ["N520"]
    assert "100 % of the elements of a gradient are subnormal in float16" in str(found[0])
    assert 2e-6 * 2 ** found[0].evidence["scale_exponent"] >= 6e-5


def test_bfloat16_weights_at_a_small_learning_rate() -> None:
    model = nn.Linear(24, 32, bias=False).bfloat16()
    nn.init.ones_(model.weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4)
    x = torch.rand(16, 24).bfloat16()
    policy = PrecisionPolicy.preset("bf16-true", updates={"master": None})
    monitor, found = train(model, optimizer, lambda i: model(x).float().pow(2).mean(), policy)
    assert bool((model.weight == 1).all())
    assert codes(found) == ["N521"]
    assert found[0].evidence["lost"] == found[0].evidence["wanted"] == 768
    assert str(found[0]) == (
        "N521 100 % of the updates of a layer are lost: its bfloat16 weights do not move. Expected "
        "updates of at "
        "least 2^-9 of a weight. Received ‖update‖ / ‖weight‖ = 6.1e-04 at a learning rate of 0.0006 at "
        "the model "
        "itself. Keep float32 master weights (`updates: {master: float32}`) or round stochastically "
        "(`updates: {rounding: stochastic}`)."
    )
    assert monitor.last is not None
    assert monitor.last.updates[""].update.lost_share == 1


@pytest.mark.parametrize("updates", [{"master": "float32"}, {"rounding": "stochastic"}])
def test_either_remedy_silences_it(updates: dict[str, str]) -> None:
    model = nn.Linear(24, 32, bias=False).bfloat16()
    nn.init.ones_(model.weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4)
    x = torch.rand(16, 24).bfloat16()
    policy = PrecisionPolicy.preset("bf16-true", updates={"master": None, **updates})
    guard_updates(optimizer, policy)
    monitor, found = train(model, optimizer, lambda i: model(x).float().pow(2).mean(), policy)
    assert codes(found) == []
    assert monitor.last is not None
    assert monitor.last.updates[""].dtype == ("float32" if "master" in updates else "bfloat16")


def test_weight_decay_that_is_lost() -> None:
    model = nn.Linear(24, 32, bias=False).bfloat16()
    nn.init.ones_(model.weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    _, found = train(
        model, optimizer, lambda i: model(torch.zeros(2, 24).bfloat16()).float().sum() * 0, "bf16-true"
    )
    assert codes(found) == ["N521"]


class Cell(nn.Module):
    """A recurrent cell by hand, whose state grows by half at every time step."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Linear(8, 16)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        i, o = self.gates(x).sigmoid().chunk(2, -1)
        state = 1.5 * state + 0.01 * i
        return o * state.tanh(), state


class ByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = Cell()
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), 8)
        for t in range(x.shape[1]):
            h, state = self.cell(x[:, t], state)
        return self.head(h)


class Whole(nn.Module):
    """The same with its time loop inside, without layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        state, states = torch.zeros(len(x), 8), []
        for t in range(x.shape[1]):
            state = 1.5 * state + 0.01 * (x[:, t] @ self.weight).sigmoid()
            states.append(state)
        return torch.stack(states, 1)


def test_a_cell_whose_state_grows() -> None:
    model = ByHand()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x = torch.randn(16, 30, 8)
    _, found = train(model, optimizer, lambda i: model(x).square().mean())
    assert codes(found) == ["N523"]
    assert found[0].place.module == "cell"
    assert found[0].evidence["growth"] == pytest.approx(1.5, abs=0.02)
    assert "grows by a factor of 1.5" in found[0].message


def test_a_loop_inside_a_layer_whose_state_grows() -> None:
    model = nn.Sequential(Whole(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x = torch.randn(16, 30, 8)
    _, found = train(model, optimizer, lambda i: model(x).square().mean())
    assert codes(found) == ["N523"]
    assert found[0].place.module == "0"


@pytest.mark.parametrize("packed", [False, True])
def test_a_recurrent_layer_whose_state_grows(packed: bool) -> None:
    model = nn.RNN(4, 8, nonlinearity="relu", batch_first=True)
    with torch.no_grad():
        model.weight_hh_l0.copy_(1.5 * torch.eye(8))
        model.weight_ih_l0.abs_()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    x: object = torch.rand(5, 40, 4)
    if packed:
        assert isinstance(x, Tensor)
        x = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([40, 30, 30, 20, 10]), batch_first=True)
    _, found = train(model, optimizer, lambda i: (model(x)[0].data if packed else model(x)[0]).mean())
    assert codes(found) == ["N523"]
    assert found[0].evidence["growth"] == pytest.approx(1.5, abs=0.15)


def test_adam_with_gradients_of_1e_25() -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x = torch.randn(32, 8)
    _, found = train(model, optimizer, lambda i: model(x).sum() * 1e-27)
    assert set(codes(found)) == {"N524"}
    assert "100 % of Adam's second moments of a layer are zero where the first are not" in str(found[0])


def test_adam_with_gradients_of_1e_25_large() -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x = torch.randn(32, 8)
    _, found = train(model, optimizer, lambda i: model(x).sum() * 1e23)
    assert "N525" in codes(found)


class Scores(nn.Module):
    """A layer whose results grow towards float16's limit from step to step."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.scores = nn.Linear(8, 8)
        self.factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.first(x) * self.factor)


def test_a_layer_near_65504() -> None:
    model = Scores().half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(64, 8).half()
    with torch.no_grad():
        base = float(model(x).abs().max())

    def loss_of(i: int) -> Tensor:
        model.factor = 2000.0 / base * 2**i
        return (model(x) / 1024).float().mean()

    policy = PrecisionPolicy.preset("fp16-true", scaling="dynamic")
    _, found = train(model, optimizer, loss_of, policy, steps=5, scaling=ScaleHealth("dynamic", 1024))
    near = [f for f in found if f.code == "N522"]
    assert [f.place.module for f in near] == ["scores"]
    (f,) = near
    assert f.evidence["rule"] == 'layers: {"scores": {compute: float32}}'
    assert f.evidence["steps_left"] in (1, 2)
    assert [round(v / 2000) for _, v in f.evidence["trend"]][:3] == [1, 2, 4]
    assert "at the rate of the last" in f.message
    assert 'Keep it wide: `precision: {layers: {"scores": {compute: float32}}}`, or use bfloat16' in f.remedy
    PrecisionPolicy.model_validate({"preset": "fp16-mixed", "layers": {"scores": {"compute": "float32"}}})


def test_a_layer_near_65504_that_does_not_grow() -> None:
    model = nn.Linear(4, 4, bias=False).half()
    with torch.no_grad():
        model.weight.copy_(torch.eye(4) * 40000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.ones(2, 4).half()
    _, found = train(model, optimizer, lambda i: model(x).float().mean() * 1e-3, "fp16-true")
    assert codes(found)[0] == "N522"
    assert "it overflows in" not in str(found[0])


def test_a_scale_that_is_stuck() -> None:
    model = mlp()
    policy = PrecisionPolicy.preset("fp16-mixed", health={"every": 1})
    monitor = HealthMonitor(model, torch.optim.SGD(model.parameters(), lr=0.1), policy)
    found: list[Finding] = []
    for i in range(60):
        monitor.begin(7)  # no step is committed
        monitor.discard(scaling=ScaleHealth("dynamic", max(2.0 ** (16 - i), 1), 1, i + 1, max(i - 16, 0)))
        found += monitor.news()
    assert codes(found) == ["N526"]
    assert "steps overflowed under the dynamic loss scale" in found[0].message


def test_a_scale_that_calibrates_is_not_stuck() -> None:
    model = mlp()
    policy = PrecisionPolicy.preset("fp16-mixed", health={"every": 1})
    monitor = HealthMonitor(model, torch.optim.SGD(model.parameters(), lr=0.1), policy)
    for i in range(200):
        monitor.begin(i)
        monitor.discard(scaling=ScaleHealth("dynamic", 2.0**10, 1, min(i, 12), 0))
        assert monitor.news() == []


def test_units_that_are_dead() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].bias.fill_(-100)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(64, 8)
    _, found = train(model, optimizer, lambda i: model(x).square().mean())
    assert codes(found) == ["N527"]
    assert "16 of 16 units of a layer are zero for every row" in str(found[0])
