"""What tests of several rooms share: a user's recipe file, a backend that computes nothing, and a step that
was held, of a recipe that takes a logarithm."""

from __future__ import annotations

import functools
import gc
import json
import os
import signal
import sys
import types
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# A shell's background jobs ignore Ctrl-C and hand that on to what they start; tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores, as many tests wait for programs that they start; up to four."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores + 1, 4)


LONG = (
    "test_several_workers", "test_several_processes", "test_conformance", "test_keras_page", "test_imports",
    "test_two_processes", "test_kill_test", "test_soak", "test_models", "test_copied_project",
    "test_bench_keras",
)  # fmt: skip
"""Files of few tests that take long, the longest first."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Side by side, files are begun by their number of tests (as pytest-xdist would have it), but those that
    are long nevertheless come first: begun last, one of them would keep a single core busy at the end."""
    if not hasattr(config, "workerinput"):
        return
    tests = Counter(item.path for item in items)
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: (place.get(item.path.stem, len(LONG)), -tests[item.path]))


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


@pytest.fixture(autouse=True)
def nothing_was_compiled() -> None:
    """What another test compiled in this process is none of the next one's business."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is not None:
        dynamo.counters.clear()


@pytest.fixture(scope="module", autouse=True)
def the_collector_looks_at_one_module() -> None:
    """What a module of tests leaves behind is swept up, and what is still there then is looked at no more:
    with two frameworks loaded each of Python's collections would go through millions of objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def reviews_are_a_thousand() -> Iterator[None]:
    """To generate, read and encode the recipe's 20,000 takes far longer than the few steps that tests train;
    `tests/recipes/lstm_sentiment` looks at all of them."""
    from castiron_recipes.lstm_sentiment import recipe

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "generate", functools.partial(recipe.generate, rows=1000))
        yield


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A thousand of them for a program that a test starts, as words of its command line."""
    from castiron_recipes.lstm_sentiment.reviews import generate

    files = generate(tmp_path_factory.mktemp("reviews"), rows=1000).splits
    return tuple(f"data.{split}={path}" for split, path in files.items())


@pytest.fixture(autouse=True)
def no_graph_is_kept() -> Iterator[None]:
    """TensorFlow keeps most graphs that were ever differentiated; a thousand tests would fill the memory."""
    if "tensorflow" not in sys.modules:
        yield
        return
    from castiron.keras.registry import gradients_forgotten

    with gradients_forgotten():
        yield


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
            with zipfile.ZipFile(job.run.checkpoints / name, "w") as archive:
                archive.writestr("weights", b"")
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

    def replay(self, folder, config, recipe, remedies):
        from castiron.training.backend import Replayed
        from castiron.training.incident import Attribution

        recorded = folder.incident.model_dump()
        found = Attribution.model_validate({name: recorded[name] for name in Attribution.model_fields})
        return Replayed(incident=folder.incident, replay=found)


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


GAMBLER = '''
"""Gamblers: predicts a chance, and takes its logarithm by hand."""

import torch
from torch import nn

from castiron.data import Field, Schema
from castiron.training import Recipe


class Net(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, hidden), nn.BatchNorm1d(hidden), nn.Tanh(), nn.Dropout(0.5))
        self.head = nn.Linear(hidden, 1)

    def forward(self, x):
        return self.head(self.body(x)).squeeze(1).sigmoid()


class Gambler(Recipe):
    name = "gambler"

    class Config(Recipe.Config):
        hidden: int = 4
        """Size of the state."""

    def schema(self):
        return Schema.of(
            Field(name="x", role="feature", dtype="float32", shape=(3,)),
            Field(name="y", role="target", dtype="float32"),
        )

    def learn(self, train):
        self.factor = 1.0

    def save(self, folder):
        (folder / "factor.txt").write_text(str(self.factor))

    def load(self, folder):
        self.factor = float((folder / "factor.txt").read_text())

    def model(self):
        return Net(self.config.hidden)

    def inputs(self, batch):
        return (batch["x"] * self.factor,)

    def loss(self, outputs, batch):
        return -(batch["y"] * outputs.log() + (1 - batch["y"]) * (1 - outputs).log()).mean()
'''


@pytest.fixture
def gambler(tmp_path: Path) -> Path:
    """The recipe's file."""
    path = tmp_path / "code" / "gambler.py"
    path.parent.mkdir()
    path.write_text(GAMBLER, encoding="utf-8")
    return path


@pytest.fixture
def held_step(gambler: Path, tmp_path: Path) -> Callable[..., Path]:
    """`held_step("bf16-mixed")` stores a held step of the recipe as a training would. → its folder."""

    def make(
        policy: str | dict[str, Any] = "float32", *, spoil: Callable[[Any, Any], None], **more: Any
    ) -> Path:
        import torch

        from castiron.lightning.incidents import incident_of, store
        from castiron.lightning.module import RecipeModule
        from castiron.policy import resolve
        from castiron.torch import apply, describe, device_capability
        from castiron.torch.incident_tensors import random_state, set_random_state
        from castiron.torch.replay import ReplayStep, attribute
        from castiron.training.config_file import load_config
        from castiron.training.held import Verdict

        source = tmp_path / "gambler.yaml"
        source.write_text(f"recipe: {gambler}:Gambler\n")
        loaded = load_config(source, [f"precision={policy}", "trainer.threads=1"])
        torch.manual_seed(3)
        recipe = loaded.recipe(loaded.config)
        recipe.learn(None)  # type: ignore[arg-type]
        module = RecipeModule(recipe, loaded.config.precision)
        plan, _ = resolve(loaded.config.precision, describe(module.model), device_capability("cpu"))
        applied = apply(module.model, plan)
        batch = {"x": torch.randn(6, 3), "y": torch.tensor([0.0, 1, 0, 1, 0, 1]), "row": torch.arange(20, 26)}
        spoil(module.model, batch)
        buffers = {n: b.clone() for n, b in module.model.named_buffers()}
        generators = random_state()

        @torch.no_grad()
        def restore() -> None:
            for name, buffer in module.model.named_buffers():
                buffer.copy_(buffers[name])
            set_random_state(generators)

        def run(batch: Any, i: int) -> torch.Tensor:
            with applied.forward_context():
                loss = recipe.loss(module(batch), batch)
            with applied.backward_context():
                loss.backward()
            return loss.detach()

        seen = {"loss": ("micro-batch 0",)}
        step = ReplayStep(
            root=module.model, batches=[batch], run=run, restore=restore, verdict=Verdict(True, seen, (0,))
        )
        origin = "data/train.csv:{}".format
        found = attribute(step)
        incident = incident_of(
            found, step=12, epoch=1, policy=str(plan.policy), verdict=step.verdict, response="raise",
            origin=origin,
        )  # fmt: skip
        return store(incident, step, tmp_path / "incidents", module=module, plan=plan, origin=origin, **more)

    return make
