"""The monitor: which steps it measures, what it costs, and that it changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from health_kit import Sequences, mlp, train
from torch import Tensor, nn

from castiron.health.snapshot import Snapshot, rows_of
from castiron.policy import PrecisionPolicy
from castiron.torch.health.monitor import HealthMonitor


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
