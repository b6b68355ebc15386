"""Small trainings that go wrong, or that only look so, and what castiron must say of them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from expected_incident import Expected
from torch import Tensor, nn

from castiron import NumericIncident, PrecisionPolicy
from castiron.diagnostics import Finding
from castiron.torch import transaction
from castiron.torch.audit import audit
from castiron.torch.health.monitor import HealthMonitor
from castiron.training.incident import Incident

Batch = dict[str, Tensor]


def features(rows: int = 8, width: int = 4) -> Tensor:
    """Random numbers [rows, width]."""
    return torch.randn(rows, width)


@dataclass(kw_only=True)
class Training:
    """A training of a few steps."""

    model: nn.Module
    batches: Sequence[Any]
    """One a step; a tuple: the micro-batches of a step."""
    loss_of: Any
    """`loss_of(batch)`, or a list of them, one for each optimizer."""
    optimizers: Sequence[torch.optim.Optimizer] | None = None
    """SGD by default."""
    clip_norm: float | None = None
    guard: Mapping[str, Any] = field(default_factory=dict)
    precision: Mapping[str, Any] = field(default_factory=dict)
    """More of the policy."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A broken training."""

    name: str
    title: str
    why: str
    """What goes wrong, for the documentation."""
    make: Callable[[], Training]
    policies: tuple[str, ...]
    expected: Expected

    @property
    def file(self) -> str:
        """Where it stands."""
        return inspect.getfile(self.make)

    @property
    def source(self) -> str:
        """Its code, without the decorator."""
        return inspect.getsource(self.make).partition("\ndef ")[2].join(("def ", ""))


@dataclass(frozen=True, kw_only=True)
class Silent:
    """A training that learns nothing, or the wrong thing, while every number is finite."""

    name: str
    title: str
    why: str
    make: Callable[[], Training]
    policies: tuple[str, ...]
    code: str
    """What says so: advice on numerical health (N52x), or the audit (F3xx)."""
    module: str | None = None
    says: str | None = None

    @property
    def source(self) -> str:
        return inspect.getsource(self.make).partition("\ndef ")[2].join(("def ", ""))


BROKEN: dict[str, Case] = {}
SILENT: dict[str, Silent] = {}
HEALTHY: dict[str, tuple[Callable[[], Training], tuple[str, ...]]] = {}

Make = Callable[[], Training]


def broken(
    title: str, why: str, *, policies: Sequence[str] = ("float32",), **expected: Any
) -> Callable[[Make], Make]:
    """Register a training that must be held and explained."""

    def register(make: Make) -> Make:
        name = make.__name__
        BROKEN[name] = Case(
            name=name,
            title=title,
            why=why,
            make=make,
            policies=tuple(policies),
            expected=Expected(**expected),
        )
        return make

    return register


def silent(
    title: str, why: str, *, policies: Sequence[str] = ("float32",), **expected: Any
) -> Callable[[Make], Make]:
    """Register a training that nothing stops, and that must be found all the same."""

    def register(make: Make) -> Make:
        SILENT[make.__name__] = Silent(
            name=make.__name__, title=title, why=why, make=make, policies=tuple(policies), **expected
        )
        return make

    return register


def healthy(*policies: str) -> Callable[[Make], Make]:
    """Register a training in which every step must be committed."""

    def register(make: Make) -> Make:
        HEALTHY[make.__name__] = (make, policies or ("float32",))
        return make

    return register


def find(case: Silent, policy: str) -> tuple[list[Finding], int]:
    """What is said of a silent fault, and how many steps were committed. The audit looks at one step; health
    is measured at every one."""
    torch.manual_seed(0)
    training = case.make()
    model, loss_of = training.model, training.loss_of
    whole = PrecisionPolicy.preset(policy, health={"every": 1}, **dict(training.precision))
    if case.code.startswith("F"):
        report = audit(model, training.batches[0], whole, call=lambda m, b: m(b["x"]))
        return list(report.findings), 0
    (optimizer,) = training.optimizers or [torch.optim.SGD(model.parameters(), lr=0.01)]
    monitor = HealthMonitor(model, optimizer, whole, histograms_every=1)

    def seen(batch: Any) -> Tensor:
        loss: Tensor = loss_of(batch)
        monitor.see_loss(loss)
        return loss

    hook = optimizer.register_step_pre_hook(lambda *_: monitor.before_update())
    with transaction(model, optimizer, whole) as step:
        for batch in training.batches:
            with monitor.step():
                step(seen, batch)
    hook.remove()
    return monitor.news(), step.committed


@dataclass
class Course:
    """How a training went."""

    incident: Incident | None
    committed: int
    overflows: int
    parameters: dict[str, Tensor]
    """At the end."""
    before: dict[str, Tensor]
    """Before the step that was held."""


def train(make: Make, policy: str) -> Course:
    """Run a training to its end, or to its incident."""
    torch.manual_seed(0)
    training = make()
    model = training.model
    several = training.optimizers or [torch.optim.SGD(model.parameters(), lr=0.01)]
    whole = PrecisionPolicy.preset(policy, guard=dict(training.guard), **dict(training.precision))
    incident, before = None, {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step: Any = None
        try:
            with transaction(model, several, whole, clip_norm=training.clip_norm) as step:
                losses: Any = training.loss_of
                if isinstance(losses, list):
                    losses = dict(zip(several, losses, strict=True))
                for batch in training.batches:
                    before = {n: p.detach().clone() for n, p in model.named_parameters()}
                    step(losses, *(batch if isinstance(batch, tuple) else (batch,)))
        except NumericIncident as error:
            incident = error.incident
    return Course(
        incident,
        step.committed,
        step.overflows,
        {n: p.detach().clone() for n, p in model.named_parameters()},
        before,
    )
