"""NumericHealth in Lightning's trainers, and what it leaves in the run directory."""

from __future__ import annotations

import json
import math
import sys
import types
from csv import DictReader
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from castiron.health.snapshot import KINDS
from castiron.health.table import SCHEMA, read
from castiron.lightning import NumericHealth, PrecisionPlugin, RunLogger, Trainer
from castiron.training import load_config
from castiron.training.auditing import verify
from castiron.training.launch import train

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers", "ignore:The number of training"
)


class Lit(pl.LightningModule):
    def __init__(self, weight: float | None = None, lr: float = 1e-2) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.head = nn.Linear(16, 2)
        if weight is not None:
            for p in self.parameters():
                nn.init.constant_(p, weight)
        self.lr = lr

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.head(self.body(x)).float(), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def rows(count: int = 64) -> DataLoader:
    torch.manual_seed(0)
    x = torch.randn(count, 8)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=4)


QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def test_castirons_trainer_measures_by_itself(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trainer = Trainer(
        health={"every": 2}, max_epochs=2, default_root_dir=tmp_path, enable_checkpointing=False, **QUIET
    )
    trainer.fit(Lit(), rows())
    (health,) = [c for c in trainer.callbacks if isinstance(c, NumericHealth)]
    assert health.findings == []
    assert health.last is not None
    assert isinstance(trainer.logger, RunLogger)
    folder = trainer.logger.run.path
    table = pq.read_table(folder / "health.parquet")
    assert table.schema.equals(SCHEMA)
    steps = sorted(set(table["step"].to_pylist()))
    assert steps == list(range(1, 33, 2))
    back = read(folder)
    assert [s.step for s in back] == steps
    slow = {"parameters", "first moments", "second moments"}
    assert {kind for kind, _ in back[0].groups} == set(KINDS) - slow
    assert {kind for kind, _ in back[2].groups} == set(KINDS)
    assert {layer for _, layer in back[0].groups} == {"body.0", "body.1", "head"}
    assert [s.step for s in back if s.full] == [5, 17]  # the third measurement, the ninth …
    assert back[1].peaks.keys() == {("activations", n) for n in ("body.0", "body.1", "head")}


@pytest.fixture
def events() -> Any:
    sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kinds = ("scalars", "histograms", "images", "tensors")
    return lambda folder: EventAccumulator(str(folder), size_guidance=dict.fromkeys(kinds, 0)).Reload()


def test_tensorboard_gets_curves_histograms_figures_and_nothing_empty(tmp_path: Path, events: Any) -> None:
    torch.manual_seed(0)
    trainer = Trainer(
        health={"every": 1}, max_epochs=2, default_root_dir=tmp_path, enable_checkpointing=False, **QUIET
    )
    trainer.fit(Lit(), rows())
    assert isinstance(trainer.logger, RunLogger)
    found = events(trainer.logger.run.path)
    tags = found.Tags()
    assert "Health/headroom/activations" in tags["scalars"]
    assert {f"Health/update to weight/{n}" for n in ("body.0", "head")} <= set(tags["scalars"])
    assert "Health/exponents/activations" in tags["histograms"]
    assert set(tags["images"]) == {
        "Health/exponents by layer/activations",
        "Health/exponents by layer/activation gradients",
        "Health/exponents by layer/parameters",
        "Health/headroom by layer",
        "Health/underflow by layer",
    }
    assert all(e.width == 900 for tag in tags["images"] for e in found.Images(tag))
    assert all(e.histogram_value.num > 0 for e in found.Histograms("Health/exponents/activations"))


def test_advice_reaches_people(tmp_path: Path, events: Any, caplog: pytest.LogCaptureFixture) -> None:
    policy = {
        "preset": "bf16-true",
        "updates": {"master": None, "rounding": "nearest"},
        "health": {"every": 1},
    }
    trainer = Trainer(policy, max_steps=12, default_root_dir=tmp_path, enable_checkpointing=False, **QUIET)
    trainer.fit(Lit(weight=1.0, lr=6e-4), rows())
    (health,) = [c for c in trainer.callbacks if isinstance(c, NumericHealth)]
    assert "N521" in {f.code for f in health.findings}
    assert any("N521" in r.message and "lost" in r.message for r in caplog.records)
    assert isinstance(trainer.logger, RunLogger)
    text = events(trainer.logger.run.path).Tensors("Health/advice")
    assert any(b"N521" in e.tensor_proto.string_val[0] for e in text)


def test_any_lightning_trainer_and_any_logger(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    health = NumericHealth({"preset": "float32", "health": {"every": 4}})
    trainer = pl.Trainer(
        plugins=[PrecisionPlugin("float32")], callbacks=[health], logger=logger, max_epochs=1,
        enable_checkpointing=False, log_every_n_steps=1, **QUIET,
    )  # fmt: skip
    trainer.fit(Lit(), rows())
    assert [s.step for s in read(logger.log_dir)] == [1, 5, 9, 13]
    assert "health/headroom/activations" in (Path(logger.log_dir) / "metrics.csv").read_text()


class Passing(Logger):
    """What MLflow's and W&B's loggers are to Lightning: a name, a version, and numbers by name and step."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "passing"

    @property
    def version(self) -> str:
        return "0"

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


@pytest.mark.parametrize("ours", [False, True], ids=["lightning", "castiron"])
def test_several_loggers_get_the_same_figures(tmp_path: Path, ours: bool) -> None:
    """Beside each other, in Lightning's own trainer and in castiron's; each under its own step."""
    passing, csv = Passing(), CSVLogger(tmp_path / "csv")
    settings: dict[str, Any] = {"logger": [passing, csv], "max_epochs": 1, "enable_checkpointing": False}
    settings |= {"default_root_dir": tmp_path, "log_every_n_steps": 1, **QUIET}
    policy = {"preset": "float32", "health": {"every": 4}}
    if ours:
        trainer: pl.Trainer = Trainer(policy=policy, **settings)
    else:
        trainer = pl.Trainer(
            plugins=[PrecisionPlugin("float32")], callbacks=[NumericHealth(policy)], **settings
        )
    torch.manual_seed(0)
    trainer.fit(Lit(), rows())
    health = {step: {k: v for k, v in row.items() if k.startswith("health/")} for step, row in passing.rows}
    told = {step: row for step, row in health.items() if row}
    assert list(told) == [1, 5, 9, 13]
    assert set(told[5]) == set(told[13]) == {"health/headroom/activations"}, "the largest magnitudes alone"
    assert set(told[1]) == {
        "health/headroom/activations",
        "health/headroom/activation gradients",
        "health/headroom/gradients",
        "health/lost_updates",
    }
    assert all(isinstance(v, float) and math.isfinite(v) for row in told.values() for v in row.values())
    with open(Path(csv.log_dir) / "metrics.csv", newline="") as file:
        read_back = {int(r["step"]): r for r in DictReader(file) if r["health/headroom/activations"]}
    assert {s: float(r["health/headroom/activations"]) for s, r in read_back.items()} == pytest.approx(
        {s: r["health/headroom/activations"] for s, r in told.items()}
    )


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    health = NumericHealth({"preset": "float32", "health": {"every": 1}}, folder=tmp_path)
    trainer = pl.Trainer(
        callbacks=[health], logger=False, max_epochs=1, accumulate_grad_batches=4, enable_checkpointing=False,
        **QUIET,
    )  # fmt: skip
    trainer.fit(Lit(), rows())
    assert [s.step for s in read(tmp_path)] == [1, 2, 3, 4]
    assert read(tmp_path)[0].groups["activations", "head"].size == 8  # of one micro-batch


def test_a_held_step_is_not_measured(tmp_path: Path) -> None:
    class Bad(Lit):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * float("nan") if batch_idx == 2 else loss

    trainer = Trainer(
        guard={"response": "hold"}, health={"every": 1}, max_epochs=1, default_root_dir=tmp_path,
        enable_checkpointing=False, **QUIET,
    )  # fmt: skip
    trainer.fit(Bad(), rows(32))
    assert isinstance(trainer.logger, RunLogger)
    snapshots = read(trainer.logger.run.path)
    assert [s.step for s in snapshots] == list(range(1, 8))
    assert all(s.non_finite == 0 for snapshot in snapshots for s in snapshot.groups.values())
    assert json.loads((trainer.logger.run.path / "summary.json").read_text())["steps"] == 7


def test_a_resumed_table_takes_back_what_happened_to_nobody(tmp_path: Path) -> None:
    from castiron.health.recorder import HealthRecorder
    from castiron.health.snapshot import Snapshot
    from castiron.health.statistics import measure

    values = measure(torch.randn(50).numpy())
    for resumed_at, steps in ((None, range(1, 6)), (3, range(4, 8)), (None, range(1, 2))):
        with HealthRecorder(tmp_path, resumed_at=resumed_at) as recorder:
            for step in steps:
                recorder.add(Snapshot(step, groups={("activations", "a"): values}, full=True))
        found = read(tmp_path)
        assert [s.step for s in found] == list(range(1, steps[-1] + 1))
        again = found[0].groups["activations", "a"]
        assert (again.exponents == values.exponents).all()
        assert again.rms == pytest.approx(values.rms)
        assert again.what_if["float16"].scale == values.what_if["float16"].scale


def test_the_audit_of_a_step_does_not_see_what_health_computes(tmp_path: Path) -> None:
    """The first step that the audit looks at while training is one that is measured, too."""
    small = ("data.batch_size=32", "model.embedding=8", "model.hidden=8", "model.text.max_vocabulary=200")
    fixed = ("trainer.max_steps=16", "trainer.max_epochs=null", "trainer.threads=1", "health.every=1")
    run, outcome = train(load_config("lstm-sentiment", [*small, *fixed]), runs=tmp_path, name="a")
    assert outcome.status == "completed"
    report = verify(run.path)
    assert "F302" not in {f.code for f in report.findings}
    assert [s.step for s in read(run.path)] == list(range(1, 17))
