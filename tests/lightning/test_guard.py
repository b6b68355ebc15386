"""A step that is not finite is held whole: as if its batch had not been there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torchmetrics
from torch import Tensor, nn

from castiron.diagnostics import NumericIncident
from castiron.lightning import NumericGuard, Trainer, replay
from castiron.policy import PrecisionPolicy
from castiron.policy.sections import GuardSection
from castiron.torch import WeightAverage

NAN = float("nan")


class Net(pl.LightningModule):
    """A network with everything that a skipped step leaves traces in."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.fused = fused
        layers = [nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1)]
        self.net = nn.Sequential(*layers)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch["x"]), batch["y"])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2, fused=self.fused)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Average(pl.Callback):
    """Averages weights after every step that counts."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.average, self.step = WeightAverage(module, 0.5), 0

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if trainer.global_step != self.step:
            self.step = trainer.global_step
            self.average.update()


class Batches:
    """Six good batches, and among them the bad ones."""

    def __init__(self, bad: dict[int, float], field: str = "x") -> None:
        self._bad, self._field = bad, field

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        rows = 0
        for number in range(6):
            good = {
                "x": torch.randn(5, 4, generator=generator),
                "y": torch.randn(5, 1, generator=generator),
                "row": torch.arange(rows, rows + 5),
            }
            rows += 5
            if number in self._bad:
                bad = {name: t.clone() for name, t in good.items()}
                bad[self._field][2] = self._bad[number]
                yield bad
            yield good


def fit(
    loader: Any, folder: Path, *, module: pl.LightningModule | None = None, **arguments: Any
) -> tuple[pl.LightningModule, Trainer, Average]:
    torch.manual_seed(7)
    average = Average()
    trainer = Trainer(
        arguments.pop("policy", "float32"), max_epochs=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, accelerator="cpu", default_root_dir=folder,
        callbacks=[*arguments.pop("first", []), average, *arguments.pop("more", [])], **arguments,
    )  # fmt: skip
    module = module or Net()
    trainer.fit(module, loader)
    return module, trainer, average


def guard_of(trainer: pl.Trainer) -> NumericGuard:
    return next(c for c in trainer.callbacks if isinstance(c, NumericGuard))  # type: ignore[attr-defined]


HOLD = {"response": "hold"}
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*LeafSpec.*")


@pytest.mark.parametrize("value", [NAN, float("inf"), 1e38])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_goes_on_as_if_the_bad_batch_had_not_been_there(
    value: float, accumulate: int, tmp_path: Path
) -> None:
    good, plain, averaged = fit(Batches({}), tmp_path, accumulate_grad_batches=accumulate)
    bad_batches = Batches({0: value, 3: value}) if accumulate == 1 else Pairs({1: value})
    held, trainer, other = fit(bad_batches, tmp_path, guard=HOLD, accumulate_grad_batches=accumulate)
    assert guard_of(trainer).held == (2 if accumulate == 1 else 1)
    assert trainer.global_step == plain.global_step
    for name, value_ in good.state_dict().items():
        assert torch.equal(held.state_dict()[name], value_), name
    assert str(trainer.optimizers[0].state_dict()) == str(plain.optimizers[0].state_dict())
    first, second = (t.lr_scheduler_configs[0].scheduler.state_dict() for t in (plain, trainer))
    assert first == second
    assert str(averaged.average.state_dict()) == str(other.average.state_dict())


@pytest.mark.parametrize("policy", ["float32", "bf16-mixed", "c=bfloat16,p=bfloat16,o=bfloat16"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_verdict_that_is_read_when_the_step_is_queued_holds_as_much(
    policy: str, accumulate: int, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"policy": policy, "accumulate_grad_batches": accumulate}
    good, plain, averaged = fit(Batches({}), tmp_path, module=Net(fused=True), **arguments)
    guard = NumericGuard(
        PrecisionPolicy.model_validate(policy).model_copy(update={"guard": GuardSection(**HOLD)}), late=True
    )
    bad_batches = Batches({2: NAN, 3: NAN}) if accumulate == 1 else Pairs({1: NAN})
    held, trainer, other = fit(bad_batches, tmp_path, first=[guard], module=Net(fused=True), **arguments)
    assert guard.held == (2 if accumulate == 1 else 1)
    assert guard._late
    assert "found_inf" not in trainer.optimizers[0].__dict__
    for name, value_ in good.state_dict().items():
        assert torch.equal(held.state_dict()[name], value_), name
    assert str(trainer.optimizers[0].state_dict()) == str(plain.optimizers[0].state_dict())
    assert str(averaged.average.state_dict()) == str(other.average.state_dict())
    incident = json.loads((guard.incidents[-1] / "incident.json").read_text())
    assert (incident["code"], incident["event"]) == ("N507", "data")


class Pairs(Batches):
    """Two micro-batches that belong to one step, the second of them bad, before the good ones."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        good = list(Batches({}))
        broken = {name: t.clone() for name, t in good[1].items()}
        broken["x"][2] = self._bad[1]
        yield from (good[0], broken, *good)


def test_by_default_training_stops_and_says_what_is_to_blame(tmp_path: Path) -> None:
    with pytest.raises(NumericIncident) as error:
        fit(Batches({2: NAN}), tmp_path)
    found = error.value.findings[0]
    assert str(found).startswith(
        "N507 Field 'x' of the batch is not finite in row 2 of 5: the step after 2 committed ones is not "
        "finite, and was not applied; because of row 12. Expected finite loss, gradients, buffers. Received "
        "NaN or infinity in loss (micro-batch 0); gradients ("
    )
    assert "buffers (net.1.running_mean, net.1.running_var)" in str(found)
    assert error.value.exit_code == 1
    incident, path = error.value.incident, error.value.path
    assert incident is not None
    assert path == tmp_path / "incidents" / "step-2"
    assert (incident.code, incident.step, incident.phase, incident.event) == ("N507", 2, "data", "data")
    assert [(r.index, r.row) for r in incident.rows] == [(2, 12)]
    assert incident.response == "raise"
    stored = json.loads((path / "incident.json").read_text())
    assert stored["producer"]["parameter"] == "x"


def test_a_stored_incident_is_replayed_from_python(tmp_path: Path) -> None:
    with pytest.raises(NumericIncident) as error:
        fit(Batches({2: 1e38}), tmp_path)
    assert error.value.path is not None
    again = replay(error.value.path, Net(), policies=["float64"])
    assert again.replay.reproduced
    assert again.replay.code == again.incident.code == "N501"
    assert again.replay.producer.module == "net.1"
    assert [t.goes_away for t in again.remedies] == [True]


def test_a_stopped_training_has_the_weights_of_before(tmp_path: Path) -> None:
    module = Net()
    with pytest.raises(NumericIncident):
        fit(Batches({0: NAN}), tmp_path, module=module)
    new = Net().state_dict()
    assert all(torch.equal(value, new[name]) for name, value in module.state_dict().items())


def test_the_budget_of_held_steps_ends(tmp_path: Path) -> None:
    guard = {"response": "hold", "budget": {"holds": 2, "window": 100}}
    with pytest.raises(NumericIncident) as error:
        fit(Batches({0: NAN, 1: NAN, 2: NAN, 3: NAN}), tmp_path, guard=guard)
    assert str(error.value.findings[0]).startswith(
        "N510 Expected at most 2 held steps in 100. Received 3 in the last 5 at key 'guard.budget'."
    )


class Twins(pl.LightningModule):
    """Two optimizers by hand; the second one's loss may be bad when the first has stepped."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.automatic_optimization = False
        self.first, self.second = nn.Linear(4, 1), nn.Linear(4, 1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        inputs = (batch["x"].clamp(-9, 9), batch["x"])
        for optimizer, layer, x in zip(self.optimizers(), (self.first, self.second), inputs, strict=True):
            loss = (layer(x) - batch["y"]).square().mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(layer.parameters(), lr=0.1) for layer in (self.first, self.second)]


def test_a_second_optimizers_fault_undoes_the_first_ones_step(tmp_path: Path) -> None:
    good, plain, _ = fit(Batches({}), tmp_path, module=Twins())
    held, trainer, _ = fit(Batches({2: float("inf")}), tmp_path, module=Twins(), guard=HOLD)
    assert guard_of(trainer).held == 1
    assert trainer.global_step == plain.global_step
    for name, value in good.state_dict().items():
        assert torch.equal(held.state_dict()[name], value), name
    for a, b in zip(plain.optimizers, trainer.optimizers, strict=True):
        assert str(a.state_dict()) == str(b.state_dict())


class Thrice(Batches):
    """The same batches three times over."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for _ in range(3):
            yield from super().__iter__()


@pytest.mark.parametrize("late", [False, True])
def test_an_overflow_while_the_loss_scale_calibrates_is_expected(late: bool, tmp_path: Path) -> None:
    policy = {"preset": "fp16-mixed", "scaling": {"kind": "dynamic", "initial": 2.0**14, "interval": 1}}
    first = [NumericGuard(late=late)]
    module, trainer, _ = fit(Thrice({}), tmp_path, policy=policy, module=Net(fused=True), first=first)
    guard = guard_of(trainer)
    assert guard._late is late
    assert trainer.global_step + guard.overflows == 18
    assert guard.overflows > 0
    assert guard.held == 0
    assert all(bool(t.isfinite().all()) for t in module.state_dict().values() if t.is_floating_point())


class Logging(Net):
    """Logs its loss, and keeps a metric of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.metric = torchmetrics.MeanSquaredError()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        predictions = self.net(batch["x"])
        loss = nn.functional.mse_loss(predictions, batch["y"])
        self.metric.update(predictions.detach(), batch["y"])
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss


def test_what_a_held_step_logged_and_counted_is_taken_back(tmp_path: Path) -> None:
    good, plain, _ = fit(Batches({}), tmp_path, module=Logging())
    held, trainer, _ = fit(Batches({0: NAN, 3: NAN}), tmp_path, module=Logging(), guard=HOLD)
    assert guard_of(trainer).held == 2
    assert trainer.callback_metrics["loss_epoch"] == plain.callback_metrics["loss_epoch"]
    assert isinstance(held, Logging)
    assert isinstance(good, Logging)
    assert held.metric.compute() == good.metric.compute()


def test_manual_optimization_is_replayed_without_stepping(tmp_path: Path) -> None:
    _, trainer, _ = fit(Batches({2: float("inf")}), tmp_path, module=Twins(), guard=HOLD)
    (path,) = guard_of(trainer).incidents
    incident = json.loads((path / "incident.json").read_text())
    assert (incident["code"], incident["producer"]["parameter"]) == ("N507", "x")
    assert incident["response"] == "hold"


def test_lower_lr_halves_the_rate_and_what_schedules_make_of_it(tmp_path: Path) -> None:
    guard = {"response": "lower-lr"}
    _, before, _ = fit(Batches({}), tmp_path)
    _, trainer, _ = fit(Batches({3: float("inf")}), tmp_path, guard=guard)
    # the data are to blame: to lower the rate would be no help
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    assert rate == before.optimizers[0].param_groups[0]["lr"]
    module = Diverging()
    _, trainer, _ = fit(Batches({}), tmp_path, guard=guard, module=module)
    assert guard_of(trainer).held == 1
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(rate / 0.9 / 2)  # one step fewer


class Diverging(Net):
    """Overflows once."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        predictions = self.net(batch["x"])
        if batch_idx == 3:
            predictions = (predictions * 1e30).square()
        return nn.functional.mse_loss(predictions, batch["y"])


def test_rollback_goes_back_to_the_state_of_some_steps_before(tmp_path: Path) -> None:
    guard = {"response": "rollback", "rollback": {"steps": 2}}
    seen: list[tuple[int, dict[str, Tensor]]] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *rest: Any) -> None:
            state = {n: t.clone() for n, t in module.state_dict().items()}
            seen.append((trainer.global_step, state))

    _, trainer, _ = fit(Batches({}), tmp_path, guard=guard, module=Diverging(), more=[Watch()])
    # batches 0, 1, 2 are committed, 3 is bad: back to before batch 0 + 0 steps, or to step 0
    assert [step for step, _ in seen] == [1, 2, 3, 0, 1, 2]
    start = Diverging().state_dict()
    assert all(torch.equal(value, start[name]) for name, value in seen[3][1].items())
    assert guard_of(trainer).held == 1
    assert not list(tmp_path.glob("checkpoints/rollback-*"))


class Narrow(pl.LightningModule):
    """A layer whose product overflows bfloat16 nowhere, float16 soon."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.big = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 1)
        with torch.no_grad():
            self.big.weight.fill_(200.0)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        x = batch["x"].clamp(-1, 1)
        hidden = self.big(x + (400.0 if batch_idx >= 2 else 0.0))
        return self.head(hidden * 1e-6).float().square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def test_promote_lets_the_layer_compute_in_float32_from_there_on(tmp_path: Path) -> None:
    policy = {"preset": "fp16-mixed", "guard": {"response": "promote"}}
    _, trainer, _ = fit(Batches({}), tmp_path, policy=policy, module=Narrow())
    guard = guard_of(trainer)
    assert guard.held == 1
    assert str(guard.findings[0]).startswith("N501 linear overflows float16")
    plan = trainer.precision_plugin.plan
    assert {row.path: row.compute for row in plan.rows}["big"] == "float32"
    assert trainer.global_step == 5


def test_activations_are_watched_where_the_policy_says_so(tmp_path: Path) -> None:
    class Hidden(Net):
        """An infinity that nothing comes of."""

        def __init__(self) -> None:
            super().__init__()
            self.side = nn.Linear(4, 1)

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            side = self.side((batch["x"] * 1e38 * (batch_idx == 3)).detach() * 10)
            return super().training_step(batch, batch_idx) + torch.where(side.isfinite(), side, 0.0).sum() * 0

    watch = {"watch": ["loss", "gradients", "buffers", "activations"], **HOLD}
    _, trainer, _ = fit(Batches({}), tmp_path, module=Hidden(), guard=watch)
    assert guard_of(trainer).held == 1
    assert "activations (side)" in str(guard_of(trainer).findings[0])


def test_an_optimizer_that_spoils_a_parameter_is_undone_where_parameters_are_watched(tmp_path: Path) -> None:
    class Huge(Net):
        """Finite gradients whose squares are not."""

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * 1e25 if batch_idx == 2 else loss

    watch = {"watch": ["loss", "gradients", "buffers", "parameters", "optimizer"], **HOLD}
    module, trainer, _ = fit(Batches({}), tmp_path, module=Huge(), guard=watch)
    assert guard_of(trainer).held == 1
    assert guard_of(trainer).findings[0].code == "N508"
    assert trainer.global_step == 5
    assert all(bool(t.isfinite().all()) for t in module.state_dict().values() if t.is_floating_point())


def test_the_guard_serves_a_plain_lightning_trainer(tmp_path: Path) -> None:
    trainer = pl.Trainer(
        max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        enable_checkpointing=False, default_root_dir=tmp_path, callbacks=[NumericGuard({"guard": HOLD})],
    )  # fmt: skip
    module = Net()
    trainer.fit(module, Batches({1: NAN}))
    assert trainer.global_step == 6
    assert all(bool(t.isfinite().all()) for t in module.state_dict().values() if t.is_floating_point())


def test_an_incident_that_cannot_be_stored_is_told_and_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "incidents").write_text("a file where the folder should be")
    _, trainer, _ = fit(Batches({3: NAN}), tmp_path, guard=HOLD)
    assert trainer.global_step == 6
    guard = guard_of(trainer)
    assert guard.incidents == []
    (told,) = guard.findings
    assert "The incident is not stored: " in str(told)
    assert str(tmp_path / "incidents") in str(told)
