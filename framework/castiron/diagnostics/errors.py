"""Errors that a user can cause. Each carries findings, and renders as them; none needs a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from castiron.diagnostics.finding import Finding


class CastironError(Exception):
    """Something a user can mend. `findings` says what, where and how; `exit_code` is the CLI's."""

    exit_code: int = 2

    def __init__(self, findings: Finding | Iterable[Finding]) -> None:
        self.findings: tuple[Finding, ...] = (findings,) if isinstance(findings, Finding) else tuple(findings)
        super().__init__("\n".join(str(f) for f in self.findings))

    def __reduce__(self) -> tuple[type[CastironError], tuple[tuple[Finding, ...]]]:
        return type(self), (self.findings,)


class ConfigError(CastironError):
    """A config, policy or argument that is refused."""


class PlanError(ConfigError):
    """A policy that does not fit the model: rules that match nothing or clash, dtypes not applied."""


class HardwareError(ConfigError):
    """A policy that this device cannot run."""


class DataError(CastironError):
    """Data that breaks its contract."""


class AuditError(CastironError):
    """A failed audit: operations that do not run in the declared formats."""

    exit_code = 1


class NumericIncident(CastironError):
    """A step with NaN or infinity where the policy allows none. Nothing of the step was applied.

    `incident` is the record (`castiron.training.incident.Incident`) of what happened, `path` the folder that
    holds it together with all that `castiron replay` needs; None where the step was not looked at again, or
    nothing was written.
    """

    exit_code = 1

    def __init__(
        self,
        findings: Finding | Iterable[Finding],
        *,
        incident: Any = None,
        path: str | Path | None = None,
    ) -> None:
        super().__init__(findings)
        self.incident = incident
        self.path = Path(path) if path is not None else None

    def __reduce__(self) -> tuple[Any, ...]:
        # The third item is put into __dict__: the arguments by name have no place in the second.
        return type(self), (self.findings,), {"incident": self.incident, "path": self.path}


class ManifestError(CastironError):
    """A checkpoint that does not match what is asked to load it."""


class RunError(CastironError):
    """A run directory that cannot be made, read or resumed."""
