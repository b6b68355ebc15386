"""What `castiron train`, `evaluate` and `predict` do with a recipe in PyTorch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from castiron.lightning.auditing import audit_recipe, first_batch
from castiron.lightning.checkpoints import load_foreign, load_weights
from castiron.lightning.loaders import TorchLoader
from castiron.lightning.module import RecipeModule
from castiron.lightning.peers import told_as_lost
from castiron.lightning.quiet import quiet_lightning
from castiron.lightning.run import TrainingRun, make_trainer
from castiron.policy import resolve
from castiron.torch.capability import device_capability
from castiron.torch.determinism import deterministic_algorithms, seed_everything, threads
from castiron.torch.modules import describe
from castiron.torch.optimizers import build_optimizer
from castiron.torch.updates import guard_updates
from castiron.training.audit import AuditReport
from castiron.training.backend import Job, Outcome, Preview, Split
from castiron.training.manifest import asset_digests
from castiron.training.preparation import make_batches, prepare
from castiron.training.rank_facts import code_facts, data_facts
from castiron.training.ranks import check_alike, first_then_others, world_of
from castiron.training.schedules import total_steps


def preview(job: Job) -> Preview:
    with _session(job):
        prepared = prepare(job)
        module = RecipeModule(prepared.recipe, job.config.precision)
    config = job.config.trainer
    layers = describe(module.precision_root)
    plan, notes = resolve(job.config.precision, layers, device_capability(config.device))
    share = prepared.batches["train"].shard(0, world_of(job.config))
    batches = len(TorchLoader(share, config.limit_train))
    return Preview(
        plan=plan,
        data={split: data.report for split, data in prepared.datasets.items()},
        parameters=sum(p.numel() for p in module.precision_root.parameters() if p.requires_grad),
        steps_per_epoch=-(-batches // config.accumulate),
        steps=total_steps(config, batches),
        findings=tuple(notes),
    )


def audit(job: Job) -> AuditReport:
    config = job.config.trainer
    with _session(job):
        prepared = prepare(job, ("train",))
        module = RecipeModule(prepared.recipe, job.config.precision)
        layers = describe(module.precision_root)
        plan, _ = resolve(job.config.precision, layers, device_capability(config.device))
        optimizer = module.recipe.optimizer(module.model) or build_optimizer(
            module.model, module.recipe.run.optimizer
        )
        guard_updates(optimizer, job.config.precision)
        batch = first_batch(TorchLoader(prepared.batches["train"]))
        return audit_recipe(module, batch, plan, [optimizer])


def fit(job: Job) -> Outcome:
    peers = job.peers
    with _session(job), told_as_lost(peers.rank) if peers.world > 1 else contextlib.nullcontext():
        check_alike(peers, "versions and code", code_facts(job.recipe))
        prepared = first_then_others(peers, lambda: prepare(job))
        check_alike(peers, "data", data_facts(prepared.datasets, prepared.batches) if peers.world > 1 else {})
        return TrainingRun(job, prepared).run()


def evaluate(job: Job, splits: Sequence[Split]) -> dict[str, dict[str, float]]:
    with _session(job):
        prepared = prepare(job, splits)
        module = RecipeModule(prepared.recipe, job.config.precision)
        _load(job, module)
        results: dict[str, dict[str, float]] = {}
        for split in splits:
            if split in prepared.batches:
                loader = TorchLoader(prepared.batches[split])
                make_trainer(job, []).test(module, loader, verbose=False)
                results[split] = dict(module.results)
    return results


def predict(job: Job, inputs: Sequence[str | Mapping[str, Any]]) -> list[dict[str, Any]]:
    with _session(job):
        recipe = job.recipe(job.config)
        recipe.load(job.run.assets)
        module = RecipeModule(recipe, job.config.precision)
        _load(job, module)
        batches = make_batches(recipe, recipe.encode(recipe.questions(inputs)), training=False)
        found = make_trainer(job, []).predict(module, TorchLoader(batches)) or []
    answers: list[dict[str, Any]] = [{} for _ in inputs]
    for rows, outputs in found:
        values = outputs.detach().float().cpu().numpy()
        for row, answer in zip(rows.tolist(), recipe.answers(values), strict=True):
            answers[row] = answer
    return answers


def _load(job: Job, module: RecipeModule) -> None:
    """The weights that a job names: those of its run, or others in their place."""
    device = job.config.trainer.device
    if job.weights is not None:
        job.reporter.findings(load_foreign(module, job.weights, device, job.on_mismatch))
        return
    assert job.checkpoint is not None
    assets = asset_digests(job.run.assets)
    told = load_weights(module, job.checkpoint, device=device, assets=assets, on_mismatch=job.on_mismatch)
    job.reporter.findings(told)


@contextlib.contextmanager
def _session(job: Job) -> Iterator[None]:
    """Seeds, deterministic kernels and threads as declared; Lightning's own advice left out."""
    config = job.config.trainer
    with threads(config.threads), deterministic_algorithms(config.deterministic), quiet_lightning():
        seed_everything(job.config.seed)
        yield
