"""`castiron.audit` of a Keras model: what was declared against what runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from castiron.keras.modules import describe
from castiron.keras.precision import departures
from castiron.policy import Plan, PrecisionPolicy, resolve
from castiron.training.audit import AuditReport, merge
from castiron.training.audit_waivers import judge


def audit(
    model: Any,
    batch: Any,
    policy: PrecisionPolicy | str | Mapping[str, Any] | None = None,
    *,
    plan: Plan | None = None,
) -> AuditReport:
    """Hold what a model stores and computes in against a policy; nothing of it is changed.

    Raises:
        PlanError: the policy does not fit the model.
    """
    started = time.perf_counter()
    declared = plan.policy if plan is not None else PrecisionPolicy.model_validate(policy or "float32")
    if plan is None:
        plan, _ = resolve(declared, describe(model))
    kept, waived = judge(departures(model, plan), declared.enforce)
    return AuditReport(
        policy=str(declared),
        policy_hash=declared.hash(),
        device="cpu",
        level=declared.enforce.level,
        traced="none",
        layers=len(plan.layers()),
        findings=merge(kept),
        waived=merge(waived),
        seconds=time.perf_counter() - started,
    )


def assert_precision(model: Any, batch: Any, policy: Any = None, **arguments: Any) -> AuditReport:
    """For tests: the report, where nothing of severity error was found.

    Raises:
        AuditError: something was.
    """
    return audit(model, batch, policy, **arguments).check()
