"""What `castiron train`, `evaluate`, `predict` and `replay` do with a recipe in TensorFlow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from castiron.diagnostics import ConfigError, Place, finding
from castiron.keras import checkpoints
from castiron.keras.auditing import audit_module, first_batch
from castiron.keras.capability import resolve_device
from castiron.keras.determinism import deterministic_operations, seed_everything, set_threads
from castiron.keras.loaders import TensorLoader
from castiron.keras.module import RecipeModel
from castiron.keras.modules import variables
from castiron.keras.peers import told_as_lost
from castiron.keras.registry import gradients_forgotten
from castiron.keras.run import TrainingRun
from castiron.keras.switches import matmul_switches
from castiron.training.audit import AuditReport
from castiron.training.backend import Job, Outcome, Preview, Reporter, Silent, Split
from castiron.training.config import RunConfig
from castiron.training.manifest import asset_digests
from castiron.training.preparation import make_batches, prepare
from castiron.training.rank_facts import code_facts, data_facts
from castiron.training.ranks import check_alike, first_then_others, world_of
from castiron.training.schedules import total_steps

STRATEGIES = ("auto", "multi-worker")
"""What `trainer.strategy` may be; several devices are trained on by several processes under both."""


def preview(job: Job) -> Preview:
    with session(job.config, job.reporter):
        prepared = prepare(job)
        module = RecipeModel(prepared.recipe)
    config = job.config.trainer
    batches = len(prepared.batches["train"].shard(0, world_of(job.config)))
    batches = batches if config.limit_train is None else min(batches, config.limit_train)
    return Preview(
        plan=module.plan,
        data={split: data.report for split, data in prepared.datasets.items()},
        parameters=module.parameters,
        steps_per_epoch=-(-batches // config.accumulate),
        steps=total_steps(config, batches),
        findings=tuple(module.findings),
    )


def audit(job: Job) -> AuditReport:
    with session(job.config, job.reporter):
        prepared = prepare(job, ("train",))
        module = RecipeModel(prepared.recipe)
        module.prepare_training(1)
        loader = TensorLoader(prepared.batches["train"], module.policy, module.schema)
        return audit_module(module, first_batch(loader))


def fit(job: Job) -> Outcome:
    _refuse_weights(job)
    peers = job.peers
    if peers.world > 1:
        _check_several(job.config)
    with session(job.config, job.reporter), told_as_lost(peers.rank):
        check_alike(peers, "versions and code", code_facts(job.recipe))
        prepared = first_then_others(peers, lambda: prepare(job))
        check_alike(peers, "data", data_facts(prepared.datasets, prepared.batches) if peers.world > 1 else {})
        return TrainingRun(job, prepared).run()


def evaluate(job: Job, splits: Sequence[Split]) -> dict[str, dict[str, float]]:
    assert job.checkpoint is not None
    with session(job.config, job.reporter):
        prepared = prepare(job, splits)
        module = RecipeModel(prepared.recipe)
        _load(job, module)
        results: dict[str, dict[str, float]] = {}
        for split in splits:
            if split in prepared.batches:
                loader = TensorLoader(prepared.batches[split], module.policy, module.schema)
                results[split] = dict(module.evaluate(loader))
    return results


def predict(job: Job, inputs: Sequence[str | Mapping[str, Any]]) -> list[dict[str, Any]]:
    assert job.checkpoint is not None
    answers: list[dict[str, Any]] = [{} for _ in inputs]
    with session(job.config, job.reporter):
        recipe = job.recipe(job.config)
        recipe.load(job.run.assets)
        module = RecipeModel(recipe)
        _load(job, module)
        batches = make_batches(recipe, recipe.encode(recipe.questions(inputs)), training=False)
        for batch in TensorLoader(batches, module.policy, module.schema):
            outputs = module.predict(batch)
            for row, answer in zip(batch["row"].numpy().tolist(), recipe.answers(outputs), strict=True):
                answers[row] = answer
    return answers


def weights(job: Job) -> dict[str, np.ndarray]:
    assert job.checkpoint is not None
    with session(job.config, job.reporter):
        module = _module_of(job)
        _load(job, module)
        values = {name: v._value.numpy() for name, v in variables(module.model).items()}
        return {n: v.astype(np.float32) if v.dtype.itemsize < 4 else v for n, v in values.items()}


def adopt(job: Job, weights: Mapping[str, np.ndarray]) -> None:
    with session(job.config, job.reporter):
        module = _module_of(job)
        for name, variable in variables(module.model).items():
            variable._value.assign(tf.cast(weights[name], variable._value.dtype))
        module.prepare_training(1)
        assets = asset_digests(job.run.assets)
        checkpoints.write(job.run.checkpoints / "best.safetensors", module, {"step": 0}, assets=assets)


def _load(job: Job, module: RecipeModel) -> None:
    """The weights of the job's checkpoint, held against the run's policy and what its recipe learned."""
    _refuse_weights(job)
    assert job.checkpoint is not None
    assets = asset_digests(job.run.assets)
    told = checkpoints.load(
        job.checkpoint, module, training=False, assets=assets, on_mismatch=job.on_mismatch
    )
    job.reporter.findings(told)


def _module_of(job: Job) -> RecipeModel:
    """The recipe's model as the run learned its data."""
    recipe = job.recipe(job.config)
    recipe.load(job.run.assets)
    return RecipeModel(recipe)


@contextlib.contextmanager
def session(config: RunConfig, reporter: Reporter | None = None) -> Iterator[None]:
    """Seeds, deterministic kernels, threads, device and switches as declared; Keras's global state as it is
    by default."""
    trainer = config.trainer
    _check(config)
    late = set_threads(trainer.threads)
    if late is not None:
        (reporter or Silent()).findings([late])
    with (
        deterministic_operations(trainer.deterministic),
        matmul_switches(config.precision.matmul),
        tf.device(resolve_device(trainer.device)),
        _own_floatx(),
        gradients_forgotten(),
    ):
        seed_everything(config.seed)
        yield


@contextlib.contextmanager
def _own_floatx() -> Iterator[None]:
    """A recipe is built in float32, whatever the process's floatx and policy are; these come back."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


def _check(config: RunConfig) -> None:
    """Refuse what this wing does not do, rather than not do it (X815)."""
    trainer = config.trainer
    if trainer.strategy not in STRATEGIES:
        raise ConfigError(
            finding(
                "X815",
                "TensorFlow has no such strategy for a recipe.",
                place=Place(key="trainer.strategy"),
                expected=", ".join(STRATEGIES),
                received=trainer.strategy,
                remedy="Leave it at auto, or use backend: torch.",
            )
        )


def _check_several(config: RunConfig) -> None:
    """Refuse what several processes do not do in this wing (X815)."""
    if config.trainer.compile:
        raise ConfigError(
            finding(
                "X815",
                "A step that several processes take is not compiled by XLA.",
                place=Place(key="trainer.compile"),
                expected="trainer.compile=false, or one process",
                received="trainer.compile=true",
            )
        )


def _refuse_weights(job: Job) -> None:
    """Refuse a file of weights rather than pass it over (X815)."""
    if job.weights is not None:
        raise ConfigError(
            finding(
                "X815",
                "Recipes take no file of weights in TensorFlow.",
                place=Place(file=str(job.weights)),
                expected="a run's own checkpoints",
                received="--weights",
                remedy="Use backend: torch, and `castiron convert` afterwards.",
            )
        )
