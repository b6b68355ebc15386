"""A recipe's health in TensorFlow: what its run leaves behind."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from castiron.health import tags
from castiron.training import load_config
from castiron.training.launch import train


def test_a_run_is_measured(tmp_path: Path) -> None:
    loaded = load_config(
        "lstm-sentiment",
        ["backend=tensorflow", "precision=bf16-mixed", "data.batch_size=32", "model.embedding=8",
         "model.hidden=8", "model.text.max_vocabulary=200", "trainer.max_steps=8", "trainer.max_epochs=1",
         "trainer.limit_validation=1", "trainer.limit_test=1", "health.every=2", "trainer.device=cpu"],
    )  # fmt: skip
    run, outcome = train(loaded, runs=tmp_path, name="run")
    assert outcome.status == "completed"
    rows = pq.read_table(run.path / "health.parquet").to_pylist()
    assert {row["step"] for row in rows} == {1, 3, 5, 7}
    everything = [row for row in rows if row["step"] == 5]
    assert {row["kind"] for row in everything} >= {"activations", "gradients", "parameters", "updates"}
    layers = {row["layer"] for row in everything if row["kind"] == "activations"}
    assert {"embedding", "lstm.ahead.0", "lstm.back.0", "head"} <= layers
    (head,) = [r for r in everything if (r["kind"], r["layer"]) == ("activations", "head")]
    assert (head["dtype"], head["float16/overflow"]) == ("bfloat16", 0)
    scalars = EventAccumulator(str(run.path)).Reload().Tags()["scalars"]
    assert str(tags.headroom("activations")) in scalars
    assert str(tags.gradient_rms("head")) in scalars
