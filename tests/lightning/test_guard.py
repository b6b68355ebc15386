"""A step that is not finite is held whole: as if its batch had not been there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from castiron.diagnostics import ConfigError, NumericIncident
from castiron.lightning import NumericGuard, Trainer
from castiron.torch import WeightAverage

NAN = float("nan")


class Net(pl.LightningModule):
    """A network with everything that a skipped step leaves traces in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        layers = [nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1)]
        self.net = nn.Sequential(*layers)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch["x"]), batch["y"])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
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
        enable_model_summary=False, enable_checkpointing=False, callbacks=[average], accelerator="cpu",
        default_root_dir=folder, **arguments,
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


class Pairs(Batches):
    """Two micro-batches that belong to one step, the second of them bad, before the good ones."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        good = list(Batches({}))
        broken = {name: t.clone() for name, t in good[1].items()}
        broken["x"][2] = self._bad[1]
        yield from (good[0], broken, *good)


def test_by_default_training_stops_and_says_what_was_not_finite(tmp_path: Path) -> None:
    with pytest.raises(NumericIncident) as error:
        fit(Batches({2: NAN}), tmp_path)
    found = error.value.findings[0]
    assert str(found).startswith(
        "N500 The step after 2 committed ones is not finite, and was not applied; its rows: 10, 11, 12 and 2 "
        "more. Expected finite loss, gradients, buffers. Received NaN or infinity in loss (micro-batch 0); "
        "gradients ("
    )
    assert "buffers (net.1.running_mean, net.1.running_var)" in str(found)
    assert error.value.exit_code == 1


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


def test_an_overflow_while_the_loss_scale_calibrates_is_expected(tmp_path: Path) -> None:
    policy = {"preset": "fp16-mixed", "scaling": {"kind": "dynamic", "initial": 2.0**24, "max": 2.0**24}}
    module, trainer, _ = fit(Batches({}), tmp_path, policy=policy)
    guard = guard_of(trainer)
    assert guard.overflows > 0
    assert guard.held == 0
    assert all(bool(t.isfinite().all()) for t in module.state_dict().values() if t.is_floating_point())


@pytest.mark.parametrize(
    ("guard", "key"),
    [({"response": "rollback"}, "guard.response"), ({"watch": ["activations"]}, "guard.watch")],
)
def test_what_this_version_does_not_do_is_refused(guard: dict[str, Any], key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"does not do that yet.*key '{key}'"):
        fit(Batches({}), tmp_path, guard=guard)


def test_the_guard_serves_a_plain_lightning_trainer(tmp_path: Path) -> None:
    trainer = pl.Trainer(
        max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        enable_checkpointing=False, default_root_dir=tmp_path, callbacks=[NumericGuard({"guard": HOLD})],
    )  # fmt: skip
    module = Net()
    trainer.fit(module, Batches({1: NAN}))
    assert trainer.global_step == 6
    assert all(bool(t.isfinite().all()) for t in module.state_dict().values() if t.is_floating_point())
