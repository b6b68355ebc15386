"""A recipe trained from beginning to end in TensorFlow: files, numbers twice, stopped, resumed, replayed."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from castiron.diagnostics import ConfigError, ManifestError
from castiron.health import tags
from castiron.keras import run as run_module
from castiron.keras.incidents import IncidentFolder
from castiron.training import RunDirectory, load_config
from castiron.training.backend import Job, Outcome, Remedies, load_backend
from castiron.training.launch import resume, train

sys.path.insert(0, str(Path(__file__).parent))

from keras_written_recipe import run_written

TINY = (
    "backend=tensorflow",
    "data.batch_size=32",
    "model.embedding=8",
    "model.hidden=8",
    "model.text.max_vocabulary=200",
    "trainer.limit_train=4",
    "trainer.limit_validation=2",
    "trainer.limit_test=2",
    "trainer.max_epochs=2",
    "trainer.log_every=1",
    "trainer.device=cpu",
)


def fit(runs: Path, *overrides: str, name: str = "run") -> tuple[RunDirectory, Outcome]:
    return train(load_config("lstm-sentiment", [*TINY, *overrides]), runs=runs, name=name)


def rows(run: RunDirectory) -> list[dict[str, Any]]:
    """What was logged, without the clock."""
    return [{k: v for k, v in row.items() if k != "items_per_s"} for row in run.metrics()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> tuple[RunDirectory, Outcome]:
    """One whole run, for several tests."""
    before = os.environ.get("CASTIRON_CACHE")
    os.environ["CASTIRON_CACHE"] = str(shared_cache)
    try:
        return fit(tmp_path_factory.mktemp("runs"))
    finally:
        os.environ.pop("CASTIRON_CACHE") if before is None else os.environ.update(CASTIRON_CACHE=before)


def test_a_run_leaves_the_files_and_pages_that_the_other_wing_leaves(whole: Any) -> None:
    run, outcome = whole
    assert (outcome.status, outcome.steps) == ("completed", 8)
    assert set(outcome.metrics) == {"train", "validation", "test"}
    assert set(outcome.metrics["test"]) == {"loss", "accuracy", "f1"}
    losses = [row["train/loss"] for row in run.metrics() if "train/loss" in row]
    assert len(losses) == 8
    assert np.isfinite([*losses, *outcome.metrics["test"].values()]).all()
    files = {p.name for p in run.path.iterdir()}
    wanted = {"config.yaml", "plan.json", "data.json", "environment.json", "metrics.jsonl", "summary.json"}
    assert wanted <= files
    assert {p.stem for p in run.checkpoints.iterdir()} == {"best", "last", "last-2"}
    events = EventAccumulator(str(run.path)).Reload()
    scalars = set(events.Tags()["scalars"])
    wanted_tags = [tags.loss("train"), tags.metric("accuracy", "validation"), tags.metric("f1", "test")]
    assert {str(tag) for tag in (*wanted_tags, tags.throughput(), tags.learning_rate())} <= scalars
    plan = json.loads((run.path / "plan.json").read_text())
    assert {"embedding", "lstm.ahead.0", "lstm.back.0", "head"} <= {row["path"] for row in plan["rows"]}


def test_the_best_weights_are_evaluated_and_answer_questions(whole: Any) -> None:
    run, _ = whole
    loaded = load_config("lstm-sentiment", list(TINY))
    backend = load_backend("tensorflow")
    job = Job(config=loaded.config, recipe=loaded.recipe, run=run, checkpoint=run.checkpoint("best"))
    answers = backend.predict(job, ["a moving film", "dull and flat"])
    assert [set(a) for a in answers] == [{"label", "probability"}] * 2
    # Limits are for training: this is the whole validation split.
    results = backend.evaluate(job, ("validation",))
    assert set(results["validation"]) == {"loss", "accuracy", "f1"}


def test_a_run_stopped_within_an_epoch_goes_on_to_the_same_numbers(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, outcome = whole
    step = run_module.TrainingRun._step
    taken: list[int] = []

    def interrupt(self: Any, batches: Any) -> None:
        step(self, batches)
        taken.append(1)
        if len(taken) == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run_module.TrainingRun, "_step", interrupt)
    stopped, early = fit(tmp_path)
    assert (early.status, early.steps, early.exit_code) == ("stopped", 6, 75)
    monkeypatch.setattr(run_module.TrainingRun, "_step", step)
    _, late = resume(stopped)
    assert late.status == "completed"
    assert rows(stopped) == rows(run)
    ours, theirs = (load_file(r.checkpoints / "last.safetensors") for r in (stopped, run))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert late.metrics["test"] == outcome.metrics["test"]


def test_a_dry_run_says_what_would_be(tmp_path: Path) -> None:
    from castiron.training.launch import preview

    found = preview(load_config("lstm-sentiment", list(TINY)), RunDirectory(tmp_path))
    assert (found.steps_per_epoch, found.steps) == (4, 8)
    assert found.plan.row("head").family == "matmul"


def test_a_strategy_that_tensorflow_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such strategy for a recipe\. Expected auto, multi-worker"):
        fit(tmp_path, "trainer.strategy=fsdp")


ROOTS = """
    def model(self):
        model = Root()
        model(tf.ones([1]))
        return model

    def inputs(self, batch):
        return (batch["x"],)

    def loss(self, outputs, batch):
        return tf.reduce_mean(tf.square(outputs - batch["y"]))


class Root(keras.Model):
    def build(self, shape):
        self.w = self.add_weight(shape=(), initializer="ones", name="w")
        self.built = True

    def call(self, x, training=False):
        return tf.sqrt(self.w * x)
"""


def roots(folder: Path, size: int, *overrides: str) -> Any:
    rows = (4, 9, 16, -25, 36, 49)
    return run_written(folder, "Roots", rows, ROOTS, f"data: {{batch_size: {size}}}\n", *overrides)


def test_an_incident_stops_with_the_row_and_the_line_and_is_replayed_from_its_folder(tmp_path: Path) -> None:
    loaded, run, outcome = roots(tmp_path, 6, "trainer.max_epochs=1")
    assert (outcome.status, outcome.steps, outcome.incidents) == ("failed", 0, 1)
    incident = outcome.incident
    assert incident is not None
    assert (incident.code, incident.phase, incident.event) == ("N504", "forward", "domain")
    assert (incident.producer.op, incident.producer.module) == ("Sqrt", "")
    assert incident.producer.source is not None
    assert incident.producer.source.text == "return tf.sqrt(self.w * x)"
    assert [(Path(r.file or "").name, r.line) for r in incident.rows] == [("train.csv", 5)]
    folder = IncidentFolder.open(run.incidents / "step-0")
    again = load_backend("tensorflow").replay(
        folder, loaded.config, loaded.recipe, Remedies(policies=[loaded.config.precision.preset("float64")])
    )
    assert again.replay.reproduced
    assert (again.replay.producer, again.replay.rows) == (incident.producer, incident.rows)
    assert [(t.tried, t.goes_away) for t in again.remedies] == [("policy float64", False)]


def test_a_held_step_is_counted_and_training_goes_on(tmp_path: Path) -> None:
    _, run, outcome = roots(tmp_path, 2, "trainer.max_epochs=2", "guard.response=hold")
    assert (outcome.status, outcome.steps, outcome.held_steps) == ("completed", 4, 2)
    assert run.summary()["held_steps"] == 2


def test_a_damaged_checkpoint_is_said(whole: Any, tmp_path: Path) -> None:
    from castiron.keras.checkpoints import read_state

    damaged = tmp_path / "last.safetensors"
    damaged.write_bytes((whole[0].checkpoints / "last.safetensors").read_bytes()[:100])
    with pytest.raises(ManifestError, match="C601 The checkpoint cannot be used: it ends in the middle"):
        read_state(damaged)
