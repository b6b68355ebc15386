"""Planted diseases and healthy trainings: what the monitor says, and that it changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from castiron.diagnostics import Finding
from castiron.health.snapshot import KINDS, ScaleHealth, Snapshot, rows_of
from castiron.policy import PrecisionPolicy, resolve
from castiron.torch.capability import device_capability
from castiron.torch.health.monitor import HealthMonitor
from castiron.torch.modules import describe
from castiron.torch.precision import apply
from castiron.torch.updates import guard_updates

ONE = ScaleHealth("static", 1.0)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[int], Tensor],
    policy: PrecisionPolicy | str = "float32",
    steps: int = 7,
    scaling: ScaleHealth | None = None,
    seen: Callable[[Snapshot], None] | None = None,
) -> tuple[HealthMonitor, list[Finding]]:
    policy = PrecisionPolicy.model_validate(policy).replace(health={"every": 1})
    monitor = HealthMonitor(model, optimizer, policy, histograms_every=1, on_snapshot=seen)
    found: list[Finding] = []
    for i in range(steps):
        with monitor.step() as health:
            optimizer.zero_grad()
            loss = loss_of(i)
            health.see_loss(loss)
            loss.backward()
            health.before_update(scaling)
            optimizer.step()
        found += monitor.news()
    monitor.remove()
    return monitor, found


def codes(found: list[Finding]) -> list[str]:
    return [f.code for f in found]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


# --- planted ---------------------------------------------------------------------------------------------


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


# --- healthy -----------------------------------------------------------------------------------------------


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.lstm = nn.LSTM(16, 16, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.lstm(self.embedding(ids))[0])
        mask = torch.zeros(ids.shape[1], ids.shape[1]).masked_fill(
            torch.ones(ids.shape[1], ids.shape[1]).triu(1).bool(), float("-inf")
        )
        x = x + self.attention(x, x, x, attn_mask=mask.to(x.dtype), need_weights=False)[0]
        return self.head(x.mean(1))


@pytest.mark.parametrize("preset", ["float32", "bf16-mixed", "fp16-mixed"])
def test_a_healthy_run_says_nothing(preset: str) -> None:
    model = Sequences()
    policy = PrecisionPolicy.preset(preset)
    plan, _ = resolve(policy, describe(model), device_capability("cpu"))
    precision = apply(model, plan)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = torch.randint(0, 50, (32, 20))
    labels = ids[:, 3] % 3

    def loss_of(i: int) -> Tensor:
        with precision.forward_context():
            return nn.functional.cross_entropy(model(ids).float(), labels) * (
                1024 if preset[:2] == "fp" else 1
            )

    scaling = ScaleHealth("dynamic", 1024) if preset == "fp16-mixed" else None
    monitor, found = train(model, optimizer, loss_of, policy, steps=41, scaling=scaling)
    assert [str(f) for f in found] == []
    snapshot = monitor.last
    assert snapshot is not None
    assert {kind for kind, _ in snapshot.groups} == set(KINDS)
    assert {"embedding", "lstm", "norm", "attention", "head"} <= set(snapshot.kind("activations"))
    assert {"embedding", "lstm", "norm", "head"} <= set(snapshot.kind("gradients"))
    assert len(snapshot.levels["lstm"]) == 20
    rows = rows_of(snapshot)
    assert len(rows) == len(snapshot.groups)
    assert sum(sum(r["exponents"]) for r in rows) == sum(s.size for s in snapshot.groups.values())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 16, num_layers=2, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0][:, -1])


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3),
        nn.GroupNorm(4, 16),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(16, 3),
    )


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
    return nn.Sequential(nn.Linear(8, 16), nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(192, 3))


ORDINARY: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)), (8,)),
    "convolutional": (convolutional, (3, 10, 10)),
    "gru": (Recurrent, (12, 8)),
    "transformer": (encoder, (12, 8)),
}


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
@pytest.mark.parametrize("preset", ["float32", "bf16-mixed"])
@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_models_are_left_in_peace(name: str, preset: str, optimizer: str) -> None:
    build, shape = ORDINARY[name]
    model = build()
    policy = PrecisionPolicy.preset(preset)
    plan, _ = resolve(policy, describe(model), device_capability("cpu"))
    precision = apply(model, plan)
    steps: torch.optim.Optimizer = (
        torch.optim.AdamW(model.parameters(), lr=1e-3)
        if optimizer == "AdamW"
        else torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    )
    x = torch.randn(32, *shape)
    labels = (x.flatten(1)[:, :3].argmax(1)).long()

    def loss_of(i: int) -> Tensor:
        with precision.forward_context():
            return nn.functional.cross_entropy(model(x).float(), labels)

    _, found = train(model, steps, loss_of, policy, steps=12)
    assert [str(f) for f in found] == []


# --- what it costs, and what it changes --------------------------------------------------------------------


def test_measuring_changes_no_bit() -> None:
    def run(measured: bool) -> list[Tensor]:
        torch.manual_seed(1)
        model = Sequences()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        ids = torch.randint(0, 50, (8, 10))

        def loss_of(i: int) -> Tensor:
            return model(ids).square().mean()

        if measured:
            train(model, optimizer, loss_of, steps=5)
        else:
            for i in range(5):
                optimizer.zero_grad()
                loss_of(i).backward()
                optimizer.step()
        return [p.detach().clone() for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(run(True), run(False), strict=True))


def test_only_every_nth_step_is_measured() -> None:
    model = mlp()
    policy = PrecisionPolicy.preset("float32", health={"every": 3})
    seen: list[int] = []
    full: list[bool] = []

    def note(snapshot: object) -> None:
        seen.append(snapshot.step)  # type: ignore[attr-defined]
        full.append(snapshot.full)  # type: ignore[attr-defined]

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = HealthMonitor(model, optimizer, policy, histograms_every=1, what_if_every=2, on_snapshot=note)
    for _ in range(8):
        with monitor.step() as health:
            loss = model(torch.randn(2, 8)).sum()
            health.see_loss(loss)
            loss.backward()
            health.before_update()
            optimizer.step()
    assert seen == [1, 4, 7]
    assert full == [True, False, True]


def test_most_measurements_look_at_peaks_alone() -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    seen: list[Snapshot] = []
    policy = PrecisionPolicy.preset("float32", health={"every": 1})
    monitor = HealthMonitor(model, optimizer, policy, on_snapshot=seen.append)
    x = torch.randn(16, 8)
    for i in range(6):
        with monitor.step() as health:
            loss = model(x * 10**i).square().mean()
            health.see_loss(loss)
            loss.backward()
            health.before_update()
            optimizer.step()
    assert [bool(s.kind("activations")) for s in seen] == [True, False, True, False, True, False]
    assert [s.full for s in seen] == [False, False, True, False, False, False]
    peaks = seen[1].peaks
    assert peaks["activations", "0"] == ("float32", float(model[0](x * 10).detach().abs().max()))
    assert {kind for kind, _ in peaks} == {"activations"}
    assert [set(s.kind("updates")) for s in seen] == [{"0", "2"}, set()] * 3
    assert {r["largest"] for r in rows_of(seen[1])} >= {largest for _, largest in peaks.values()}


def test_a_model_with_hooks_is_copied_without_the_monitor() -> None:
    model = mlp()
    monitor = HealthMonitor(model, torch.optim.SGD(model.parameters(), lr=0.1), "float32")
    twin = copy.deepcopy(model)
    monitor.begin(0)
    twin(torch.randn(2, 8))
    assert monitor._batch.take() == {}
    model(torch.randn(2, 8))
    assert set(monitor._batch.take()) == {("activations", n) for n in "012"}
    monitor.discard()


def test_a_step_that_raises_leaves_the_monitor_usable() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = HealthMonitor(model, optimizer, PrecisionPolicy.preset("float32", health={"every": 1}))
    with pytest.raises(ZeroDivisionError), monitor.step():
        model(torch.randn(2, 8) / (1 // 0))
    assert not monitor.active
    with monitor.step():
        loss = model(torch.randn(2, 8)).sum()
        loss.backward()
        monitor.before_update()
        optimizer.step()
    assert monitor.last is not None


def test_an_optimizer_that_is_not_known_here() -> None:
    model = mlp()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    x = torch.randn(16, 8)
    monitor, found = train(model, optimizer, lambda i: model(x).square().mean())
    assert found == []
    assert monitor.last is not None
    assert 0 < monitor.last.updates["0"].update.ratio < 0.1


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.3),
        lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.3, amsgrad=True),
        lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    ],
)
def test_the_exact_update_is_what_the_optimizer_does(make: Callable[..., torch.optim.Optimizer]) -> None:
    model = nn.Linear(6, 5).double()
    optimizer = make(model.parameters())
    x = torch.randn(9, 6).double()
    policy = PrecisionPolicy.preset("float64", health={"every": 1})
    monitor = HealthMonitor(model, optimizer, policy, histograms_every=1)
    for _ in range(3):
        optimizer.zero_grad()
        before = model.weight.detach().clone()
        with monitor.step() as health:
            loss = model(x).square().mean()
            health.see_loss(loss)
            loss.backward()
            health.before_update()
            optimizer.step()
        assert monitor.last is not None
        moved = (model.weight.detach() - before).reshape(-1)
        joined = torch.cat([moved, moved.new_zeros(0)])
        found = monitor.last.groups["updates", ""]
        assert found.largest >= float(joined.abs().max()) * (1 - 1e-6)
        assert monitor.last.updates[""].update.lost == 0
