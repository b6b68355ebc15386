"""The audit of a recipe before its first step, and of any Keras model, for the front door."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from castiron.keras.audit.api import audit
from castiron.keras.audit.continuous import Observer
from castiron.keras.audit.spec import example
from castiron.keras.loaders import TensorLoader
from castiron.keras.loss import to_loss_dtype
from castiron.keras.module import RecipeModel
from castiron.policy import PrecisionPolicy
from castiron.training.audit import AuditReport
from castiron.training.backend import Job
from castiron.training.run_directory import AUDIT


def audit_model(model: Any, inputs: Sequence[str], policy: PrecisionPolicy) -> AuditReport:
    """Audit any Keras model on inputs of these formats (`float32[8,16,3]`)."""
    return audit(model, example(inputs), policy)


def audit_module(module: RecipeModel, batch: Mapping[str, Any]) -> AuditReport:
    """Audit a recipe's model, loss and optimizer as they stand, with the plan at work on them.

    Args:
        batch: one of the recipe's, cast by the data contract.
    """
    recipe = module.recipe

    def call(model: Any, given: Any, training: bool) -> Any:
        return to_loss_dtype(model(*recipe.inputs(given), training=training), module.policy.loss)

    return audit(
        module.model,
        dict(batch),
        plan=module.plan,
        call=call,
        loss=recipe.loss,
        optimizer=module.updates,
        applied=True,
    )


def first_batch(loader: TensorLoader) -> Mapping[str, Any]:
    """A batch to look at; the loader goes on as if none had been taken."""
    state = loader.state_dict()
    try:
        return next(iter(loader))
    finally:
        loader.load_state_dict(state)


def audit_before_training(job: Job, module: RecipeModel, loader: TensorLoader) -> None:
    """Write `audit.json`; tell what was found, and stop there where the policy is strict. Where it says
    `audit.every`, the module is looked at from here on.

    Raises:
        AuditError: something of severity error was found, and `audit.level` is strict.
    """
    enforce = module.policy.enforce
    if enforce.level == "off":
        return
    report = audit_module(module, first_batch(loader))
    job.run.write_text(AUDIT, report.to_json())
    if enforce.level == "strict":
        report.check()
    if shown := [f for f in report.findings if f.severity != "info"]:
        job.reporter.findings(shown)
    if enforce.every is not None:
        module.observer = Observer(module.model, lambda: module.plan, report, jit=job.config.trainer.compile)


def audit_after_a_step(job: Job, module: RecipeModel, step: int) -> None:
    """Tell what was found in training for the first time, after so many steps."""
    if module.observer is not None and (found := module.observer.after(step)):
        job.reporter.findings(found)


def audit_is_over(job: Job, module: RecipeModel) -> None:
    """Write into `audit.json` what was found since training began."""
    if module.observer is not None and module.observer.report is not None:
        job.run.write_text(AUDIT, module.observer.report.to_json())
