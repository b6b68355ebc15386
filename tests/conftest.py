"""What tests of several rooms share: a user's recipe file, and a backend that computes nothing."""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path

import pytest

RECIPE = '''
"""A recipe as a user writes it."""

from typing import Annotated, Literal

from pydantic import Field as Within

from castiron.data import Field, Schema
from castiron.training import Recipe


class Tiny(Recipe):
    """A tiny recipe."""

    name = "tiny"
    backends = ("torch",)

    class Config(Recipe.Config):
        hidden: Annotated[int, Within(gt=0)] = 8
        """Size of the state."""
        pooling: Literal["max", "mean"] = "max"
        """How states are pooled."""
        dropout: Annotated[float, Within(ge=0, lt=1)] = 0.5
        """Dropout before the head."""

    def schema(self):
        return Schema.of(Field(name="text", role="text"), Field(name="label", role="target", dtype="int64"))

    def embedded_data(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        for split, rows in (("train", 20), ("validation", 5), ("test", 5)):
            lines = [f"{split} text {i},{i % 2}" for i in range(rows)]
            (folder / f"{split}.csv").write_text("text,label\\n" + "\\n".join(lines) + "\\n")
        return {split: folder / f"{split}.csv" for split in ("train", "validation", "test")}


def helper():
    """Not a recipe."""
'''


@pytest.fixture
def user_recipe(tmp_path: Path) -> Path:
    """A user's file with the recipe `Tiny`; nothing of it needs a framework."""
    path = tmp_path / "my_recipe.py"
    path.write_text(RECIPE, encoding="utf-8")
    return path


class FakeBackend:
    """Trains nothing, and writes what a backend writes. `behave` is what `fit` does first."""

    name = "torch"
    behave = staticmethod(lambda job: None)
    jobs: list = []

    def capability(self, device: str = "auto"):
        from castiron.policy import DeviceCapability, Support

        native = Support(status="native", cost=1.0)
        emulated = Support(status="emulated", cost=3.2, reason="no instructions for it")
        unsupported = Support(status="unsupported", reason="the kernel does not exist")
        row = {"float64": native, "float32": native, "bfloat16": native, "float16": emulated,
               "tf32": unsupported, "float8_e4m3fn": unsupported}  # fmt: skip
        lstm = {**row, "float16": unsupported}
        return DeviceCapability(
            device="cpu", name="A test CPU", features=("avx512_bf16",), support={"matmul": row, "lstm": lstm}
        )

    def _plan(self, job):
        from castiron.policy import LayerInfo, TensorInfo, resolve

        weight = TensorInfo(name="head.weight", dtype="float32", shape=(2, 8), trainable=True)
        layers = [
            LayerInfo(path="", type="Model"),
            LayerInfo(path="encoder", type="LSTM", family="lstm"),
            LayerInfo(path="head", type="Linear", family="matmul", parameters=(weight,)),
        ]
        return resolve(job.config.precision, layers, self.capability())[0]

    def preview(self, job):
        from castiron.training.backend import Preview
        from castiron.training.splits import load_splits

        data = load_splits(job.config, job.recipe(job.config), job.run.path)
        return Preview(
            plan=self._plan(job),
            data={split: d.report for split, d in data.items()},
            parameters=16,
            steps_per_epoch=3,
            steps=9,
        )

    def fit(self, job):
        from castiron.training.backend import Outcome, Progress

        FakeBackend.jobs.append(job)
        job.reporter.plan(self._plan(job))
        outcome = FakeBackend.behave(job)
        if outcome is not None:
            return outcome
        first = Progress(step=0, steps=4, epoch=1, epochs=1)
        job.reporter.begin(first)
        for step in range(1, 5):
            job.run.log_metrics({"step": step, "train/loss": 1 / step})
            job.reporter.update(
                Progress(step=step, steps=4, epoch=1, epochs=1, loss=1 / step, items_per_s=1234.5)
            )
        job.reporter.update(
            Progress(step=4, steps=4, epoch=1, epochs=1, loss=0.25, metrics={"accuracy": 0.875}, held=1)
        )
        job.reporter.end()
        for name in ("last.ckpt", "best.ckpt"):
            (job.run.checkpoints / name).write_bytes(b"weights")
        job.run.close()
        return Outcome(
            status="completed",
            steps=4,
            metrics={"train": {"loss": 0.25}, "test": {"loss": 0.5, "accuracy": 0.875}},
            duration_s=1.5,
            items_per_s=1234.5,
            checkpoint=job.run.checkpoints / "best.ckpt",
        )

    def evaluate(self, job, splits=("test",)):
        FakeBackend.jobs.append(job)
        return {split: {"loss": 0.5, "accuracy": 0.875} for split in splits}

    def predict(self, job, inputs):
        FakeBackend.jobs.append(job)
        return [{"label": "positive", "probability": 0.9321} for _ in inputs]


@pytest.fixture
def fake_backend(monkeypatch: pytest.MonkeyPatch) -> type[FakeBackend]:
    """`backend: torch` is a backend that computes nothing."""
    from castiron.training import backend

    module = types.ModuleType("castiron_fake_backend")
    module.__spec__ = types.SimpleNamespace(name="castiron_fake_backend")  # type: ignore[assignment]
    module.FakeBackend = FakeBackend  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "castiron_fake_backend", module)
    monkeypatch.setitem(
        backend._HOMES, "torch", ("castiron_fake_backend", "FakeBackend", "numpy", "pip install it")
    )
    monkeypatch.setattr(FakeBackend, "behave", staticmethod(lambda job: None))
    monkeypatch.setattr(FakeBackend, "jobs", [])
    return FakeBackend


@pytest.fixture
def read_json():
    return lambda path: json.loads(Path(path).read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The real data sets: $CASTIRON_DATA, else shared/data beside the checkout. Tests are marked `data`."""
    checkout = Path(__file__).resolve().parents[1]
    named = os.environ.get("CASTIRON_DATA")
    folder = Path(named) if named else checkout.parent / "shared" / "data"
    if not (folder / "sst2").is_dir():
        pytest.skip(f"no real data in {folder}: set CASTIRON_DATA to the folder that holds sst2, imdb, …")
    return folder
