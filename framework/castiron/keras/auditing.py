"""The audit of a recipe, and of any Keras model, for the front door."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from castiron.keras.audit.api import audit
from castiron.keras.module import RecipeModel
from castiron.keras.session import session
from castiron.policy import PrecisionPolicy
from castiron.training.audit import AuditReport
from castiron.training.backend import Job
from castiron.training.preparation import prepare


def audit_recipe(job: Job) -> AuditReport:
    """Audit the step that a recipe would train; nothing is trained."""
    with session(job.config, job.reporter):
        module = RecipeModel(prepare(job, ("train",)).recipe)
        return audit(module.model, None, plan=module.plan)


def audit_model(model: Any, inputs: Sequence[str], policy: PrecisionPolicy) -> AuditReport:
    """Audit any Keras model on inputs of these formats (`float32[8,16,3]`)."""
    return audit(model, tuple(inputs), policy)
