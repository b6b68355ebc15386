"""A step of a bare loop is applied whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F

from castiron.diagnostics import ConfigError, NumericIncident, PlanError
from castiron.torch import WeightAverage, transaction
from castiron.torch.transaction import Transaction

NAN, INF = float("nan"), float("inf")
HOLD = {"preset": "float32", "guard": {"response": "hold"}}
Batch = dict[str, Tensor]


class Net(nn.Module):
    """What a skipped step leaves traces in: running statistics, dropout, a metric."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1)
        )
        self.error = torchmetrics.MeanSquaredError()

    def loss(self, batch: Batch) -> Tensor:
        predicted = self.net(batch["x"])
        self.error.update(predicted.detach(), batch["y"])
        return F.mse_loss(predicted, batch["y"])


class Twins(nn.Module):
    """Two networks with an optimizer each; the second sees what the first makes."""

    def __init__(self) -> None:
        super().__init__()
        self.maker = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.judge = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))

    def judges(self, batch: Batch) -> Tensor:
        made = self.maker(batch["x"]).detach()
        return F.softplus(self.judge(made)).mean() + F.softplus(-self.judge(batch["real"])).mean()

    def makes(self, batch: Batch) -> Tensor:
        return F.softplus(-self.judge(self.maker(batch["x"]) * batch["weight"])).mean()


def good_batches(count: int = 6) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return [
        {
            "x": draw(5, 4), "y": draw(5, 1), "real": draw(5, 4), "weight": torch.ones(5, 1),
            "row": torch.arange(5 * i, 5 * i + 5),
        }
        for i in range(count)
    ]  # fmt: skip


def broken(batch: Batch, value: float = NAN, field: str = "x") -> Batch:
    copy = {name: t.clone() for name, t in batch.items()}
    copy[field][2] = value
    return copy


class Run:
    """A training from a fixed seed, and everything that it leaves."""

    def __init__(
        self,
        steps: Iterable[tuple[Batch, ...]],
        policy: Any = "float32",
        *,
        fused: bool = True,
        look: Callable[[Run], None] | None = None,
        **arguments: Any,
    ) -> None:
        torch.manual_seed(7)
        self.model = self.make()
        self.optimizers = self.optimize(fused)
        self.schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in self.optimizers]
        self.schedules += [torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizers[0], 10)]  # type: ignore
        self.average, *more = self.average_of()
        self.outcomes = []
        with transaction(
            self.model, self.optimizers, policy,
            schedulers=self.schedules, averages=[self.average, *more], clip_norm=1.0, **arguments,
        ) as self.step:  # fmt: skip
            for batches in steps:
                self.outcomes.append(self.step(self.losses(), *batches))
                if look is not None:
                    look(self)

    def make(self) -> Any:
        return Net()

    def optimize(self, fused: bool) -> list[torch.optim.Optimizer]:
        return [torch.optim.AdamW(self.model.parameters(), lr=1e-2, fused=fused)]

    def average_of(self) -> list[WeightAverage]:
        return [WeightAverage(self.model, 0.5)]

    def losses(self) -> Any:
        return self.model.loss

    def state(self) -> dict[str, Any]:
        error = getattr(self.model, "error", None)
        return {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "schedules": [s.state_dict() for s in self.schedules],
            "average": self.average.state_dict(),
            "random": torch.get_rng_state(),
            "metric": {} if error is None else {**error.metric_state, "n": error._update_count},
        }


class Averaged(Run):
    """With averages that treat buffers either way."""

    def average_of(self) -> list[WeightAverage]:
        self.averages = [WeightAverage(self.model, 0.5, buffers="copy")]
        self.averages += [WeightAverage(self.model, 0.5, buffers="average")]
        return self.averages


class TwinRun(Run):
    def make(self) -> Any:
        return Twins()

    def optimize(self, fused: bool) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.Adam(part.parameters(), lr=1e-2, fused=fused)
            for part in (self.model.judge, self.model.maker)
        ]

    def losses(self) -> Any:
        judge, maker = self.optimizers
        return {judge: self.model.judges, maker: self.model.makes}


def flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{path}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, item in enumerate(value) for k, v in flat(item, f"{path}/{i}").items()}
    return {path: value.clone() if isinstance(value, Tensor) else value}


def assert_same(one: Any, other: Any) -> None:
    """Bit for bit."""
    first, second = flat(one), flat(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, Tensor):
            assert torch.equal(
                value.reshape(-1).view(torch.uint8), second[name].reshape(-1).view(torch.uint8)
            ), name
        else:
            assert value == second[name], name


MODES = [False, True]
"""Whether the verdict comes late, as on a GPU."""


@pytest.mark.parametrize("late", MODES)
@pytest.mark.parametrize("value", [NAN, INF, 1e38])
@pytest.mark.parametrize("at", [0, 2, 5])
def test_training_goes_on_as_if_the_bad_batch_had_not_been_there(value: float, at: int, late: bool) -> None:
    good = good_batches()
    plain = Run([(b,) for b in good])
    steps = [(b,) for b in good]
    steps.insert(at, (broken(good[at], value),))
    steps.insert(at, (broken(good[at], value),))
    held = Run(steps, HOLD, late=late)
    assert held.step.held == 2
    assert held.step.committed == plain.step.committed == 6
    assert [o.committed for o in held.outcomes] == [i not in (at, at + 1) for i in range(8)]
    assert_same(plain.state(), held.state())


@pytest.mark.parametrize("late", MODES)
@pytest.mark.parametrize("micro", [0, 1, 2])
def test_accumulated_batches_are_one_step(micro: int, late: bool) -> None:
    good = good_batches(9)
    threes = [tuple(good[i : i + 3]) for i in (0, 3, 6)]
    plain = Run(threes)
    bad = list(threes[1])
    bad[micro] = broken(bad[micro])
    held = Run([threes[0], tuple(bad), *threes[1:]], HOLD, late=late)
    assert held.outcomes[1].verdict.micro_batches == (micro,)
    assert_same(plain.state(), held.state())


def test_accumulated_batches_have_the_mean_of_their_gradients() -> None:
    good = good_batches(2)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model.weight.detach().clone()
    expected = [torch.autograd.grad(F.mse_loss(model(b["x"]), b["y"]), model.weight)[0] for b in good]
    with transaction(model, optimizer) as step:
        outcome = step(lambda b: F.mse_loss(model(b["x"]), b["y"]), *good)
    torch.testing.assert_close(before - model.weight, (expected[0] + expected[1]) / 2)
    assert outcome.committed
    assert not outcome.loss.requires_grad
    assert outcome.loss.dim() == 0


@pytest.mark.parametrize("late", MODES)
@pytest.mark.parametrize("field", ["real", "weight"], ids=["the first's fault", "the second's fault"])
@pytest.mark.parametrize("micro", [1, 2])
def test_several_optimizers_decide_together(field: str, micro: int, late: bool) -> None:
    good = good_batches(6)
    steps = [tuple(good[i : i + micro]) for i in range(0, 6, micro)]
    plain = TwinRun(steps)
    bad = (*steps[1][:-1], broken(steps[1][-1], field=field))
    held = TwinRun([steps[0], bad, *steps[1:]], HOLD, late=late)
    assert [o.committed for o in held.outcomes[:3]] == [True, False, True]
    assert_same(plain.state(), held.state())
    module = held.step.findings[-1].place.module
    assert module is None or module.startswith("judge" if field == "real" else ("judge", "maker")[0])


@pytest.mark.parametrize("late", MODES)
def test_master_copies_come_back_when_a_second_optimizer_fails(late: bool) -> None:
    policy = {"preset": "bf16-true", "updates": {"master": "float32"}, "guard": {"response": "hold"}}
    good = [(b,) for b in good_batches()]
    plain = TwinRun(good, policy)
    held = TwinRun([*good[:3], (broken(good[3][0], field="weight"),), *good[3:]], policy, late=late)
    assert held.step.held == 1
    assert_same(plain.state(), held.state())


def test_every_piece_of_state_is_as_before_a_held_step() -> None:
    states: list[Any] = []
    good = good_batches()
    steps = [(good[0],), (good[1],), (broken(good[2]),)]
    Run(steps, HOLD, look=lambda run: states.append(flat(run.state())))
    assert_same(states[1], states[2])
    assert any(not torch.equal(states[0][n], v) for n, v in states[1].items() if isinstance(v, Tensor))


@pytest.mark.parametrize("late", MODES)
def test_by_default_a_bad_step_ends_training(late: bool) -> None:
    good = good_batches()
    run: list[Run] = []
    with pytest.raises(NumericIncident) as error:
        Run([(good[0],), (broken(good[1]),), (good[2],)], late=late, look=run.append)
    assert [o.committed for o in run[0].outcomes] == ([True, False] if late else [True])
    assert error.value.exit_code == 1
    assert "the step after 1 committed ones is not finite, and was not applied" in str(error.value)
    assert_same(run[0].state(), Run([(good[0],)]).state())


def test_the_record_says_what_was_seen_and_is_written(tmp_path: Path) -> None:
    good = good_batches()
    with pytest.raises(NumericIncident) as error:
        Run([(good[0],), (broken(good[1]),)], incidents=tmp_path / "incidents", origin=lambda r: f"a.csv:{r}")
    assert error.value.path == tmp_path / "incidents" / "step-1"
    record = json.loads((error.value.path / "incident.json").read_text())
    assert error.value.incident is not None
    assert record == json.loads(error.value.incident.model_dump_json())
    assert record["step"] == 1
    assert record["policy"] == "p=float32,c=float32,o=float32"
    assert record["response"] == "raise"
    assert set(record["seen"]) == {"loss", "gradients", "buffers"}
    assert record["event"] == "data"
    assert [r["row"] for r in record["rows"]] == [7]


def test_an_incident_that_cannot_be_stored_hides_nothing(tmp_path: Path) -> None:
    good = good_batches()
    (tmp_path / "a file").write_text("")
    with pytest.raises(NumericIncident) as error:
        Run([(good[0],), (broken(good[1]),)], incidents=tmp_path / "a file" / "incidents")
    assert error.value.path is None
    assert error.value.incident is not None
    assert "The incident is not stored: The file cannot be written: a part of the path is a file." in str(
        error.value
    )


def test_the_budget_of_held_steps_ends() -> None:
    good = good_batches()
    policy = {"guard": {"response": "hold", "budget": {"holds": 2, "window": 100}}}
    with pytest.raises(NumericIncident) as error:
        Run([(b,) for i in range(4) for b in (broken(good[i]), good[i])], policy)
    assert str(error.value.findings[0]).startswith(
        "N510 Expected at most 2 held steps in 100. Received 3 in the last 5 at key 'guard.budget'."
    )


def test_old_held_steps_leave_the_window() -> None:
    good = good_batches()
    policy = {"guard": {"response": "hold", "budget": {"holds": 1, "window": 3}}}
    run = Run([(broken(good[0]),), *[(b,) for b in good[:3]], (broken(good[0]),)], policy)
    assert run.step.held == 2


@pytest.mark.parametrize("late", MODES)
def test_an_error_in_the_loss_leaves_everything_as_it_was(late: bool) -> None:
    good = good_batches()
    plain = Run([(b,) for b in good[:2]])

    def fails(step: Transaction, model: Any) -> None:
        def loss(batch: Batch) -> Tensor:
            model.loss(batch).backward()
            raise KeyError("a mistake")

        with pytest.raises(KeyError, match="a mistake"):
            step(loss, good[2])

    run = Run(
        [(b,) for b in good[:2]],
        late=late,
        look=lambda r: fails(r.step, r.model) if len(r.outcomes) == 2 else None,
    )
    assert_same(plain.state(), run.state())


def test_the_interface_says_what_it_expects() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with transaction(model, optimizer) as step:
        with pytest.raises(ValueError, match=r"Expected one batch or more\. Received none\."):
            step(model.loss)
        with pytest.raises(ValueError, match=r"Expected a loss for each of the 1 optimizers\. Received 0"):
            step({}, good_batches(1)[0])
        with pytest.raises(ValueError, match=r"Expected a scalar loss\. Received one of shape \(5, 1\)\."):
            step(lambda b: model.net(b["x"]), good_batches(1)[0])
        with pytest.raises(PlanError, match="F310"):
            step(lambda b: model.loss(b).double(), good_batches(1)[0])
    with (
        pytest.raises(ValueError, match=r"Expected fused optimizers .* Received SGD\."),
        transaction(model, optimizer, late=True),
    ):
        pass
    with (
        pytest.raises(
            ConfigError, match=r"A bare loop does not do that\. Expected raise, hold\. Received rollback"
        ),
        transaction(model, optimizer, {"guard": {"response": "rollback"}}),
    ):
        pass


@pytest.mark.parametrize("late", MODES)
def test_an_average_takes_in_buffers_as_the_step_left_them(late: bool) -> None:
    good = good_batches()
    plain = Averaged([(b,) for b in good])
    held = Averaged([*[(b,) for b in good], (broken(good[0]),)], HOLD, late=late)
    for one, other in zip(plain.averages, held.averages, strict=True):
        assert_same(one.state_dict(), other.state_dict())


def test_a_late_verdict_is_asked_for_in_the_next_step() -> None:
    good = good_batches()
    known: list[int] = []
    run = Run([(b,) for b in good[:4]], late=True, look=lambda r: known.append(r.step.committed))
    assert known == [1, 1, 2, 3]
    assert run.step.committed == 4


def test_asking_for_an_outcome_settles_it() -> None:
    good = good_batches()
    seen: list[bool] = []
    Run([(good[0],), (broken(good[1]),), (good[2],)], HOLD, late=True,
        look=lambda r: seen.append(r.outcomes[-1].committed))  # fmt: skip
    assert seen == [True, False, True]


@pytest.mark.parametrize("late", MODES)
def test_a_step_that_is_bad_only_once_is_held_and_said_to_be_so(late: bool) -> None:
    """A transient fault: computed again the step is good."""
    good = good_batches()
    times = iter([False, True])

    class Flaky(Run):
        def losses(self) -> Any:
            def loss(batch: Batch) -> Tensor:
                value = self.model.loss(batch)
                return value * (NAN if next(times, False) else 1.0)

            return loss

    plain = Run([(good[0],), (good[2],)])
    run = Flaky([(good[0],), (good[1],), (good[2],)], HOLD, late=late)
    assert run.step.held == 1
    assert run.step.incidents[0].event == "not-reproduced"
    assert_same(plain.state(), run.state())


@pytest.mark.parametrize("late", MODES)
def test_an_optimizers_fault_is_undone_where_parameters_are_watched(late: bool) -> None:
    policy = {"guard": {"response": "hold", "watch": ["loss", "gradients", "buffers", "parameters"]}}
    good = [(b,) for b in good_batches()]
    states: list[Any] = []

    def look(run: Run) -> None:
        run.step.settle()
        states.append(flat({k: v for k, v in run.state().items() if k in ("model", "average", "random")}))
        if len(run.outcomes) == 2:
            run.optimizers[0].param_groups[0]["lr"] = 1e39

    run = Run(good[:3], policy, late=late, look=look)
    assert [o.committed for o in run.outcomes] == [True, True, False]
    assert set(run.outcomes[2].verdict.seen) == {"parameters"}
    assert_same(states[1], states[2])


# --- watching ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", MODES)
def test_activations_are_watched_at_module_boundaries(late: bool) -> None:
    class Hides(nn.Module):
        """Its overflow never reaches the loss."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 1)

        def loss(self, batch: Batch) -> Tensor:
            return self.second(self.first(batch["x"]).clamp(-5, 5)).square().mean()

    torch.manual_seed(0)
    model = Hides()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, fused=True)
    policy = {"guard": {"response": "hold", "watch": ["loss", "gradients", "buffers", "activations"]}}
    good = good_batches(3)
    with transaction(model, optimizer, policy, late=late) as step:
        assert step(model.loss, good[0]).committed
        assert step(model.loss, good[1]).committed
        model.first.bias.data[0] = 3e38
        model.first.weight.data[0] = 3e38
        outcome = step(model.loss, {"x": good[2]["x"].abs() + 1})
        assert not outcome.committed
    assert outcome.verdict.seen["activations"] == ("first",)
    assert not any(m._forward_hooks for m in model.modules() if isinstance(m, nn.Linear))


def test_steps_between_two_that_are_watched_are_ordinary_ones() -> None:
    good = good_batches()
    policy = {"guard": {"response": "hold", "every": 3}}
    plain, run = Run([(b,) for b in good]), Run([(b,) for b in good], policy)
    assert_same(plain.state(), run.state())
    bad = Run([(good[0],), (broken(good[1]),)], policy)
    assert bad.outcomes[1].committed
