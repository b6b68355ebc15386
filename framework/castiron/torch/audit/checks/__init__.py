"""The checks of a trace, a file per family of findings."""

from __future__ import annotations

from collections.abc import Iterator

from castiron.diagnostics import Finding
from castiron.torch.audit import known
from castiron.torch.audit.checks import (
    axes,
    cancellation,
    casts,
    compute,
    integers,
    islands,
    outputs,
    promotion,
)
from castiron.torch.audit.context import Context

CHECKS = (
    promotion.check,
    compute.check,
    casts.check,
    islands.check,
    integers.check,
    outputs.check,
    cancellation.check,
    axes.check,
    known.check,
)


def findings(context: Context) -> Iterator[Finding]:
    """Everything that a trace has to say of itself."""
    for check in CHECKS:
        yield from check(context)
