"""Recipes that train in both wings: by one word of the config, with the same weights the same outputs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch

from castiron.keras.loaders import TensorLoader
from castiron.keras.module import RecipeModel
from castiron.keras.modules import variables
from castiron.lightning.module import RecipeModule
from castiron.training import RunDirectory, load_config
from castiron.training.backend import Job, load_backend
from castiron.training.converting import convert
from castiron.training.launch import load_run, train
from castiron.training.preparation import prepare

FEW = (
    "trainer.max_steps=2",
    "trainer.limit_validation=1",
    "trainer.limit_test=1",
    "trainer.threads=1",
    "trainer.device=cpu",
    "trainer.log_every=1",
)
SMALL = {
    "tabular": ("model.hidden=[8, 8]",),
    "image-classifier": (
        "model.widths=[4, 8]", "model.flip=true", "model.erase=3", "model.smoothing=0.1",
        "data.batch_size=32",
    ),
    "series-forecaster": ("model.past=48",),
    "segmenter": ("model.size=[8, 8]", "model.widths=[4, 8]", "data.batch_size=4"),
}  # fmt: skip
MORE = {
    "image-classifier stride": ("model.widths=[4, 8]", "model.stride=2", "data.batch_size=32"),
    "tabular/diabetes_linear": (),
    "series-forecaster dlinear": ("model.past=48", "model.network=dlinear"),
    "series-forecaster lstm": ("model.past=48", "model.network=lstm", "model.layers=2"),
}


@pytest.mark.usefixtures("one_graph")
@pytest.mark.parametrize("precision", ["float32", "bf16-mixed"])
@pytest.mark.parametrize("config", SMALL)
def test_one_word_of_the_config_says_which_wing_trains(config: str, precision: str, tmp_path: Path) -> None:
    """`mixed_bfloat16` and `bf16-mixed` are two names of one preset."""
    names, policies = {}, set()
    for backend in ("torch", "tensorflow"):
        word = "mixed_bfloat16" if (backend, precision) == ("tensorflow", "bf16-mixed") else precision
        overrides = [*FEW, *SMALL[config], f"precision={word}", f"backend={backend}", "health.every=1"]
        run, outcome = train(load_config(config, overrides), runs=tmp_path, name=backend)
        assert (outcome.status, outcome.steps) == ("completed", 2)
        losses = [row["train/loss"] for row in run.metrics() if "train/loss" in row]
        assert len(losses) == 2
        assert all(map(math.isfinite, [*losses, *outcome.metrics["test"].values()]))
        names[backend] = set(outcome.metrics["test"])
        policies.add(run.summary()["policy"])
    assert names["torch"] == names["tensorflow"]
    assert len(policies) == 1
    if precision == "float32":
        there = convert(run, "torch", runs=tmp_path, name="carried")
        measured = [loss_of(each) for each in (run, there)]
        assert measured[0] == pytest.approx(measured[1], rel=1e-4)


def loss_of(run: RunDirectory) -> float:
    """Of the best weights of a run, over its whole test split."""
    loaded = load_run(run)
    job = Job(config=loaded.config, recipe=loaded.recipe, run=run, checkpoint=run.checkpoint("best"))
    results = load_backend(loaded.config.backend).evaluate(job, ("test",))
    return float(results["test"]["loss"])


Both = tuple[RecipeModel, RecipeModule, list[dict[str, Any]]]


def both(config: str, tmp_path: Path, *overrides: str) -> Both:
    """A recipe in both wings, with the Keras wing's weights, and three batches."""
    loaded = {n: load_config(config, [*FEW, *overrides, f"backend={n}"]) for n in ("tensorflow", "torch")}
    run = RunDirectory(tmp_path)
    job = Job(config=loaded["tensorflow"].config, recipe=loaded["tensorflow"].recipe, run=run)
    prepared = prepare(job, ("train",))
    ours = RecipeModel(prepared.recipe)
    loader = TensorLoader(prepared.batches["train"], ours.policy, ours.schema, limit=3)
    batches = [{name: value.numpy() for name, value in batch.items()} for batch in loader]
    recipe = loaded["torch"].recipe(loaded["torch"].config)
    recipe.load(run.assets)
    theirs = RecipeModule(recipe, loaded["torch"].config.precision)
    # Moved off their first values, so that norms and biases that begin at 0 or 1 count.
    random = np.random.default_rng(0)
    for name, variable in variables(ours.model).items():
        if not name.endswith(("mean", "std")) or "moving" in name:
            variable.assign(
                variable._value.numpy() + random.uniform(0.01, 0.2, variable.shape).astype("float32")
            )
    weights = {n: v._value.numpy() for n, v in variables(ours.model).items()}
    carried = recipe.carried(weights, "torch")
    theirs.model.load_state_dict({n: torch.from_numpy(np.array(w)) for n, w in carried.items()})
    back = recipe.carried({n: w.numpy() for n, w in theirs.model.state_dict().items()}, "tensorflow")
    assert set(back) == set(weights)
    assert all(np.array_equal(back[name], weights[name]) for name in weights)
    return ours, theirs, batches


@pytest.mark.parametrize("config", [*SMALL, *MORE])
def test_equal_weights_give_equal_outputs_losses_and_metrics(config: str, tmp_path: Path) -> None:
    overrides = (SMALL | MORE)[config]
    ours, theirs, batches = both(config.partition(" ")[0], tmp_path, *overrides)
    theirs.eval()
    ours_metrics, their_metrics = ours.metrics, theirs._metrics
    for batch in batches:
        a_batch = {k: tf.constant(v) for k, v in batch.items()}
        b_batch = {k: torch.from_numpy(v) for k, v in batch.items()}
        a = ours._outputs(a_batch)
        with torch.no_grad():
            b = theirs(b_batch)
        assert a.shape == b.shape
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-4, rtol=1e-4)
        loss = float(ours.recipe.loss(a, a_batch)), float(theirs.recipe.loss(b, b_batch))
        assert loss[0] == pytest.approx(loss[1], rel=1e-4)
        for metric in ours_metrics.values():
            metric.update_state(ours.recipe.targets(a_batch), ours.recipe.predictions(a))
        for metric in their_metrics.values():
            metric.update(theirs.recipe.predictions(b), theirs.recipe.targets(b_batch))
    for name, metric in ours_metrics.items():
        # The area under a curve is over 1,000 thresholds in Keras.
        close = 5e-3 if name == "auroc" else 1e-4
        assert float(metric.result()) == pytest.approx(
            float(their_metrics[name].compute()), abs=close, rel=1e-4
        )
