"""The audit's front door: a model of any framework, a config, a run. Loads no framework itself."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from castiron.diagnostics import ConfigError, Place, RunError, finding
from castiron.policy import PrecisionPolicy
from castiron.training.audit import FILE, AuditReport
from castiron.training.backend import Job, Silent, load_backend
from castiron.training.config_file import LoadedConfig
from castiron.training.run_directory import RunDirectory

_WINGS = {"torch": "castiron.torch.audit", "keras": "castiron.keras.audit"}
_BACKENDS = {"torch": "torch", "keras": "tensorflow"}


def audit(model: Any, batch: Any, policy: Any = None, **arguments: Any) -> AuditReport:
    """Hold what one training step of a model does, operation by operation, against a policy.

    Args:
        model: a `torch.nn.Module` (also a LightningModule) or a Keras model.
        batch: what it is called with: an argument, a tuple of arguments, a mapping of arguments by name.
        policy: a policy, a preset's name, a short string or a mapping; float32 by default.
        arguments: the wing's own: `loss`, `optimizer`, … (`castiron.torch.audit.audit`).

    Returns:
        The report; `report.check()` raises AuditError where something of severity error was found.

    Raises:
        TypeError: it is no model of a framework that castiron knows.
        PlanError: the policy does not fit the model.
    """
    report: AuditReport = _wing(model).audit(model, batch, policy, **arguments)
    return report


def assert_precision(model: Any, batch: Any, policy: Any = None, **arguments: Any) -> AuditReport:
    """For tests: the audit's report, where nothing of severity error was found.

    Raises:
        AuditError: something was.
    """
    return audit(model, batch, policy, **arguments).check()


def audit_config(loaded: LoadedConfig, run: RunDirectory) -> AuditReport:
    """Audit the step that a config would train; `run` is a folder to work in.

    Raises:
        CastironError: config, data or device refuse it before anything can be traced.
    """
    backend = _able(loaded.config.backend, "audit")
    with loaded.placing():
        report: AuditReport = backend.audit(
            Job(config=loaded.config, recipe=loaded.recipe, run=run, reporter=Silent())
        )
    return report


def audit_function(build: Callable[[], Any], inputs: Sequence[str], policy: PrecisionPolicy) -> AuditReport:
    """Audit the model that a function builds, on inputs of these formats (`float32[8,16,3]`).

    Raises:
        CastironError: the inputs cannot be read, or the policy does not fit the model.
    """
    model = build()
    backend = _able(_BACKENDS[_framework(model)], "audit_model")
    report: AuditReport = backend.audit_model(model, inputs, policy)
    return report


def verify(path: Path) -> AuditReport:
    """The certificate of a run, read again.

    Args:
        path: a run's folder, or an `audit.json`.

    Raises:
        RunError: there is none (F329), or it cannot be read.
    """
    file = path / FILE if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as e:
        raise RunError(
            finding(
                "F329",
                f"There is no certificate to verify: {e.strerror or e}.",
                place=Place(file=str(file)),
                expected=f"a run with an {FILE}",
                remedy="The run was not audited (audit.level: off), or is of an older castiron. "
                "castiron audit CONFIG audits without training.",
            )
        ) from e
    return AuditReport.from_json(text, file=file)


def load_function(target: str) -> Callable[[], Any]:
    """`module:function` that builds a model.

    Raises:
        ConfigError: no such module or function.
    """
    import sys

    name, _, attribute = target.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as e:
        raise ConfigError(
            finding(
                "X820",
                f"The model's function cannot be found: {e}.",
                expected="module:function, importable from here",
                received=f"'{target}'",
                remedy="The function takes no arguments and returns the model.",
            )
        ) from e
    if not callable(found):
        raise ConfigError(
            finding("X820", "This is no function.", expected="module:function", received=f"'{target}'",
                    remedy="The function takes no arguments and returns the model.")
        )  # fmt: skip
    return found  # type: ignore[no-any-return]


def _wing(model: Any) -> Any:
    return importlib.import_module(_WINGS[_framework(model)])


def _framework(model: Any) -> str:
    for cls in type(model).__mro__:
        framework: str = cls.__module__.partition(".")[0]
        if framework in _WINGS:
            return framework
    raise TypeError(f"Expected a torch.nn.Module or a keras.Model. Received {type(model).__qualname__}.")


def _able(name: str, what: str) -> Any:
    backend: Any = load_backend(name)
    if not hasattr(backend, what):
        raise ConfigError(
            finding("X812", f"The backend '{name}' has no audit.", place=Place(key="backend"),
                    remedy="Audit it with backend=torch.")
        )  # fmt: skip
    return backend
