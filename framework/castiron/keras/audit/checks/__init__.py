"""The checks of a traced step, a file per family of findings."""

from __future__ import annotations

from collections.abc import Iterator

from castiron.diagnostics import Finding
from castiron.keras.audit.checks import (
    axes,
    cancellation,
    casts,
    compute,
    integers,
    islands,
    known,
    missing,
    outputs,
    probabilities,
    promotion,
)
from castiron.keras.audit.context import Context

CHECKS = (
    promotion.check,
    compute.check,
    missing.check,
    casts.check,
    islands.check,
    probabilities.check,
    known.check,
    integers.check,
    axes.check,
    outputs.check,
    cancellation.check,
)


def findings(context: Context) -> Iterator[Finding]:
    """Everything that a traced step has to say of itself."""
    for check in CHECKS:
        yield from check(context)
