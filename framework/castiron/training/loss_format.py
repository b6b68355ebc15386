"""A loss in another format than the declared one."""

from __future__ import annotations

from castiron.diagnostics import Finding, Place, PlanError, finding
from castiron.policy import PrecisionPolicy


def wrong_loss(policy: PrecisionPolicy, received: str) -> Finding:
    """F310 as a warning, where the policy only warns.

    Raises:
        PlanError: the policy is strict (F310).
    """
    found = finding(
        "F310",
        "the loss is not in the declared format",
        place=Place(op="loss", phase="forward"),
        expected=policy.loss,
        received=received,
        severity="error" if policy.enforce.level == "strict" else "warning",
    )
    if found.severity == "error":
        raise PlanError(found)
    return found
