"""Both wings with the same weights: outputs, 20 steps of training, and runs carried from one to the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch

from castiron.diagnostics import ConfigError
from castiron.keras.loaders import TensorLoader
from castiron.keras.module import RecipeModel
from castiron.keras.modules import variables
from castiron.lightning.module import RecipeModule
from castiron.torch.optimizers import build_optimizer
from castiron.training import RunDirectory, load_config
from castiron.training.backend import Job, load_backend
from castiron.training.converting import convert
from castiron.training.launch import load_run, train
from castiron.training.preparation import prepare

TINY = [
    "data.batch_size=32", "model.embedding=8", "model.hidden=8", "model.text.max_vocabulary=200",
    "trainer.device=cpu",
]  # fmt: skip
PLAIN = ["model.dropout=0", "model.embedding_dropout=0", "model.word_dropout=0"]
STEPS, RATE, CLIP = 20, 1e-2, 1.0


def short(*overrides: str) -> list[str]:
    limits = [
        "trainer.max_steps=4",
        "trainer.max_epochs=1",
        "trainer.limit_validation=2",
        "trainer.limit_test=2",
    ]
    return [*TINY, *limits, *overrides]


def both(tmp_path: Path, *overrides: str) -> tuple[RecipeModel, RecipeModule, list[dict[str, np.ndarray]]]:
    """The recipe in both wings, with the Keras wing's weights, and 20 batches."""
    constant = "optimizer.schedule={name: constant, warmup: 0}"
    settings = [*TINY, *PLAIN, f"optimizer.lr={RATE}", constant, f"trainer.clip_norm={CLIP}", *overrides]
    loaded = {
        name: load_config("lstm-sentiment", [*settings, f"backend={name}"])
        for name in ("tensorflow", "torch")
    }
    config = loaded["tensorflow"].config
    run = RunDirectory(tmp_path)
    prepared = prepare(Job(config=config, recipe=loaded["tensorflow"].recipe, run=run), ("train",))
    ours = RecipeModel(prepared.recipe)
    batches = []
    for batch in TensorLoader(prepared.batches["train"], ours.policy, ours.schema):
        batches.append({name: value.numpy() for name, value in batch.items()})
        if len(batches) == STEPS:
            break
    recipe = loaded["torch"].recipe(loaded["torch"].config)
    recipe.load(run.assets)
    theirs = RecipeModule(recipe, loaded["torch"].config.precision)
    weights = {n: v._value.numpy() for n, v in variables(ours.model).items()}
    carried = recipe.carried(weights, "torch")
    theirs.model.load_state_dict({n: torch.from_numpy(np.array(w)) for n, w in carried.items()})
    return ours, theirs, batches


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_equal_weights_give_equal_outputs(pooling: str, tmp_path: Path) -> None:
    ours, theirs, batches = both(tmp_path, f"model.pooling={pooling}", "model.layers=2")
    for batch in batches[:3]:
        a = ours.model(*ours.recipe.inputs({k: tf.constant(v) for k, v in batch.items()})).numpy()
        with torch.no_grad():
            b = theirs.model(
                *theirs.recipe.inputs({k: torch.from_numpy(v) for k, v in batch.items()})
            ).numpy()
        assert np.abs(a - b).max() < 2e-6


# Adam divides a gradient by its own size: where it is nothing but rounding, so is the update.
@pytest.mark.parametrize(("optimizer", "tolerance"), [("adamw", 2e-4), ("sgd", 2e-6)])
def test_20_steps_from_equal_weights_give_equal_losses(
    optimizer: str, tolerance: float, tmp_path: Path
) -> None:
    ours, theirs, batches = both(tmp_path, f"optimizer.name={optimizer}")
    ours.prepare_training(STEPS)
    for name, parameter in theirs.model.named_parameters():
        # Keras has one bias where PyTorch adds up two: an optimizer would move their sum twice as far.
        parameter.requires_grad_("bias_hh" not in name)
    stepper = build_optimizer(theirs.model, theirs.recipe.run.optimizer)
    losses = []
    for number, batch in enumerate(batches):
        ours.schedule.set(number)
        a = float(ours.step([{k: tf.constant(v) for k, v in batch.items()}])["loss"])
        given = {k: torch.from_numpy(v) for k, v in batch.items()}
        stepper.zero_grad()
        loss = theirs.recipe.loss(theirs.model(*theirs.recipe.inputs(given)), given)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.model.parameters(), CLIP)
        stepper.step()
        losses.append((a, float(loss.detach())))
    a, b = np.array(losses).T
    assert abs(a[0] - b[0]) < 1e-6
    assert np.abs(a - b).max() < tolerance, np.abs(a - b)


def test_a_run_is_carried_there_and_back(tmp_path: Path) -> None:
    first, _ = train(load_config("lstm-sentiment", short("backend=tensorflow")), runs=tmp_path, name="first")
    there = convert(first, "torch", runs=tmp_path)
    back = convert(there, "tensorflow", runs=tmp_path, name="back")
    assert there.path.name == "first-torch"
    texts = ["a wonderful film", "dull, dull, dull", "not bad at all"]
    answers, measured = [], []
    for run in (first, there, back):
        loaded = load_run(run)
        job = Job(config=loaded.config, recipe=loaded.recipe, run=run, checkpoint=run.checkpoint("best"))
        backend: Any = load_backend(loaded.config.backend)
        answers.append([a["probability"] for a in backend.predict(job, texts)])
        measured.append(backend.evaluate(job)["test"])
    assert np.allclose(answers[0], answers[1], atol=1e-6)
    assert answers[0] == pytest.approx(answers[2], abs=1e-7)
    assert measured[0]["accuracy"] == pytest.approx(measured[1]["accuracy"], abs=1e-6)
    assert measured[0]["loss"] == pytest.approx(measured[1]["loss"], abs=1e-5)
    assert there.summary()["message"].startswith("Weights of tensorflow run first, step 4.")
    with pytest.raises(ConfigError, match="The run is one of backend torch already"):
        convert(there, "torch", runs=tmp_path)
