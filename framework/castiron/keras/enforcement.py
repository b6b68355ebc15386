"""`enforce`: any Keras model under a precision policy, with its own compile, fit, evaluate, predict and save.

model = enforce(keras_model, "bf16-mixed")
model.compile(optimizer="adam", loss="mse")
model.fit(x, y, callbacks=[...])
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from castiron.diagnostics import Finding
from castiron.keras.arguments import cast_call, cast_data, declared
from castiron.keras.audit.continuous import Observer
from castiron.keras.capability import device_capability
from castiron.keras.compiled import ITERATORS, compiled_step
from castiron.keras.custom_step import CustomStep, check_custom, check_model
from castiron.keras.fit_step import FitStep
from castiron.keras.health.loop import LoopHealth, learning_rate
from castiron.keras.health.watch import Watch
from castiron.keras.held import HeldSteps
from castiron.keras.modules import describe
from castiron.keras.precision import apply
from castiron.keras.replicas import each_of, first_of, kept_apart, replicas_of, update_locally
from castiron.keras.responding import Restore, RollbackPoints, check_rate
from castiron.keras.scaling import make_scaler
from castiron.keras.snapshot import Snapshot, volatile_variables
from castiron.keras.step import StepCore, check_watch
from castiron.keras.updates import updates_of
from castiron.policy import Plan, PrecisionPolicy, resolve
from castiron.training.audit import AuditReport
from castiron.training.incident import Incident
from castiron.training.responses import Responses, promoted

_REPLACED = (
    "compile",
    "fit",
    "evaluate",
    "predict",
    "train_on_batch",
    "test_on_batch",
    "predict_on_batch",
    "make_train_function",
)
"""Methods of a model that the enforcement takes the place of."""


def enforce(
    model: Any,
    policy: PrecisionPolicy | str | Mapping[str, Any] = "float32",
    *,
    device: str = "auto",
    incidents: str | Path | None = None,
    health: bool | str | Path = True,
    seed: int = 0,
) -> Any:
    """Put a built Keras model under a policy. → the same model.

    Its variables are cast and each layer gets its formats at once. From then on every batch that `fit` sees
    is cast by role (x features, y targets), and every step is a transaction: one that is not finite changes
    no variable, no optimizer slot, no statistic, no metric, and is answered as `guard.response` says. Keras's
    callbacks, metrics, `steps_per_epoch`, class and sample weights work as ever. Loss scaling is the
    policy's; Keras's own is not put on top. The state is in `model.castiron`.

    A model with a `train_step` of its own is guarded from outside: its step runs whole, and is taken back
    where what it leaves is not finite; replay runs it whole too, and names what is to blame all
    the same. Under a `tf.distribute` strategy all replicas decide as one.

    The audit reads the graph of each step as it is compiled, and again where it is compiled anew: under
    `enforce.level: strict` the first one stops before it runs where something of severity error is in it;
    what comes later is told in `model.castiron.findings`. `model.castiron.audit` is the report.

    Args:
        model: built: called once, or with an `Input`.
        policy: a policy, a preset's name, a short string, or a mapping.
        device: what the plan is held against.
        incidents: a folder; each held step is written there as `step-N/`.
        health: True measures the first step and every `health.every`-th, and `model.castiron.findings` has
            the advice; a folder: what `fit` measured is kept there as well, and the audit's certificate,
            `audit.json`; False: nothing is measured. A
            `train_step` of the model's own and replicas are not measured.
        seed: of stochastic rounding.

    Raises:
        PlanError, HardwareError: the policy does not fit the model, or the device.
        ConfigError: the model does something that cannot be guarded (X815), with the reason.
        NumericIncident: from `fit`; a step was held and the response says so, the budget is spent (N510), or
            the loss scale stands at its floor (S401).
    """
    given = PrecisionPolicy.model_validate(policy)
    Enforcement(model, given, device, incidents, health, seed)
    return model


class Enforcement:
    """A policy in force on a Keras model: `model.castiron`."""

    def __init__(
        self,
        model: Any,
        policy: PrecisionPolicy,
        device: str,
        incidents: str | Path | None,
        health: bool | str | Path,
        seed: int,
    ) -> None:
        check_watch(policy)
        self._model, self.policy, self._seed = model, policy, seed
        self._folder, self._device = incidents, device
        self.custom = type(model).train_step is not keras.Model.train_step
        """Whether the model has a `train_step` of its own."""
        check_model(model)
        plan, notes = resolve(policy, describe(model), device_capability(device))
        self.plan: Plan = plan
        """The policy, resolved against the model and device."""
        self.findings: list[Finding] = [*notes, *apply(model, plan).findings]
        """What there is to say that does not stop training: of the plan, of held steps, of health."""
        self.replicas = replicas_of(model.distribute_strategy)
        with model.distribute_strategy.scope():
            self.scaler = make_scaler(policy.scaling)
        self._iterator: Any = None
        self._points: RollbackPoints | None = None
        if policy.guard.response == "rollback":
            self._points = RollbackPoints(policy.guard.rollback.steps, self._keep)
        self.responses: Responses = Responses(policy.guard)
        self.committed = 0
        """Steps that were applied."""
        self.overflows = 0
        """Steps held because gradients overflowed while the loss scale could still fall."""
        self.held = 0
        """Steps held for more than that."""
        self._kept_in = health
        self.health: LoopHealth | None = None
        """What is measured, where something is."""
        self._observer: Observer | None = None
        if policy.enforce.level != "off":
            eager = not self.custom and self.replicas.count == 1
            self._observer = Observer(model, lambda: self.plan, eager=eager)
        self._core: StepCore | None = None
        self._fit_step: FitStep | None = None
        self._held: HeldSteps | None = None
        self._custom: CustomStep | None = None
        self._own = {name: getattr(model, name) for name in (*_REPLACED, "train_step")}
        model.__dict__["castiron"] = self
        for name in _REPLACED:
            model.__dict__[name] = getattr(self, f"_{name}")
        if self._observer is not None and self.replicas.count == 1:
            model.__dict__["test_step"] = self._observer.looking_at("evaluation", model.test_step)
            model.__dict__["predict_step"] = self._observer.looking_at("inference", model.predict_step)
        if model.compiled:
            self._prepare()

    @property
    def core(self) -> StepCore:
        """The step, once the model is compiled."""
        assert self._core is not None
        return self._core

    @property
    def own_step(self) -> CustomStep | None:
        """The model's own `train_step` under guard, once the train function is made."""
        return self._custom

    @property
    def incidents(self) -> list[Incident]:
        """The records of the held steps that were replayed."""
        return self._held.incidents if self._held else []

    @property
    def audit(self) -> AuditReport | None:
        """What the audit found in the graphs that were compiled so far; None before the first, and where the
        policy says `off`."""
        return None if self._observer is None else self._observer.report

    # --- in place of the model's own ---------------------------------------------------------------

    def _compile(self, *args: Any, **kwargs: Any) -> None:
        kwargs["auto_scale_loss"] = False  # the policy says what is scaled
        with declared(self.policy):
            self._own["compile"](*args, **kwargs)
            self._prepare()

    def _fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("validation_data") is not None:
            kwargs["validation_data"] = cast_data(self.policy, kwargs["validation_data"])
        if self._held is not None:
            self._held.pipeline = x if isinstance(x, tf.data.Dataset) else None
        folder = self._kept_in
        if isinstance(folder, bool):
            return self._run("fit", x, y, *args, **kwargs)
        Path(folder).mkdir(parents=True, exist_ok=True)
        with contextlib.nullcontext() if self.health is None else self.health.kept_in(folder, self.committed):
            try:
                return self._run("fit", x, y, *args, **kwargs)
            finally:
                if self._observer is not None:
                    self.findings += self._observer.write(Path(folder))

    def _evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        return self._run("evaluate", x, y, *args, **kwargs)

    def _predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return self._run("predict", x, *args, **kwargs)

    def _train_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, **kwargs: Any) -> Any:
        return self._run("train_on_batch", x, y, sample_weight=sample_weight, **kwargs)

    def _test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, **kwargs: Any) -> Any:
        return self._run("test_on_batch", x, y, sample_weight=sample_weight, **kwargs)

    def _predict_on_batch(self, x: Any) -> Any:
        return self._run("predict_on_batch", x)

    def _run(self, name: str, x: Any, *args: Any, **kwargs: Any) -> Any:
        """One of the model's own methods, on what the policy lets in."""
        targets = not name.startswith("predict")
        with declared(self.policy):
            args, kwargs = cast_call(self.policy, (x, *args), kwargs, targets=targets)
            try:
                return self._own[name](*args, **kwargs)
            finally:
                if self._observer is not None:
                    self.findings += self._observer.take()

    # --- the step ----------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Once the model has an optimizer."""
        model = self._model
        if model.optimizer is None:
            return
        former = None if self._core is None else self._core.updates
        updates = updates_of(model, self.policy, former, seed=self._seed)
        if self.replicas.count > 1 and not self.custom:
            update_locally(updates.optimizer)
        self._core = StepCore(model, updates, self.policy, self.scaler)
        self._core.replicas = self.replicas
        self._fit_step = FitStep(model, self._core, self.policy)
        if self.custom:  # what it says of itself, it says at once
            check_custom(model, self._core)
        if self._kept_in is not False and not self.custom and self.replicas.count == 1 and not self.health:
            self.health = LoopHealth(self._core, self.policy, self.findings.extend)
        before = self._held
        self._held = HeldSteps(self._core, self.plan, None, self._folder, actions=self)
        self._held.responses = self.responses
        if before is not None:
            self._held.incidents, self._held.pipeline = before.incidents, before.pipeline
        check_rate(self.policy.guard, model.optimizer)
        model.train_function = None

    def _make_train_function(self, force: bool = False) -> Any:
        model = self._model
        if model.train_function is not None and not force:
            return model.train_function
        assert self._core is not None
        core = self._core
        # Metrics are made with the first batch: now they are there.
        metrics = [v._value for m in model.metrics for v in m.variables]
        core.snapshot = Snapshot([*volatile_variables(model), *metrics])
        core.jit_compile = bool(model.jit_compile)
        if self.custom:
            self._custom = CustomStep(model, core, self._own["train_step"])
        model.train_function = self._train_function()
        return model.train_function

    def _train_function(self) -> Any:
        """Keras calls it with an iterator, once for every `steps_per_execution` batches."""
        model, core, strategy = self._model, self._core, self._model.distribute_strategy
        assert core is not None
        own: Any = self._fit_step
        if self._custom is not None:
            custom = self._custom
            own = lambda data, _: custom(cast_data(self.policy, data))  # noqa: E731

        if self.replicas.count > 1:
            alone = own
            own = lambda data, _: strategy.run(lambda d: alone(d, None), args=(data,))  # noqa: E731
        if self._observer is not None:
            own = self._observer.looking_at("training", own)
        steps: dict[Watch | None, tuple[Any, Any]] = {None: compiled_step(model, own, None)}

        def train(iterator: Any) -> Any:
            if iterator is not self._iterator and core.updates.keeps:
                core.updates.adopt()  # callbacks may have put other weights into the model
            if iterator is not self._iterator and self._points is not None:
                self._points.keep(self.committed)
            self._iterator = iterator
            fast = isinstance(iterator, ITERATORS)
            logs: Any = None
            for _ in range(model.steps_per_execution):
                watch, rate = self._watch(core)
                if watch not in steps:
                    steps[watch] = compiled_step(model, own, watch)
                try:
                    (found, logs), data = steps[watch][fast](iterator)
                except (StopIteration, tf.errors.OutOfRangeError):
                    if logs is None:
                        raise
                    break
                if bool(first_of(found["committed"])):
                    self.committed += 1
                    if self._observer is not None:
                        self.findings += self._observer.after(self.committed)
                    if self.health is not None and watch is not None:
                        self.health.committed(watch, found["health"], self.committed, rate, self.held)
                    if self._points is not None:
                        self._points.keep(self.committed)
                    continue
                if self.health is not None:
                    self.health.held(self.committed)
                self._respond(data, found)
                if model.train_function is not train:  # a layer was promoted
                    break
            return logs

        return train

    def _watch(self, core: StepCore) -> tuple[Watch | None, float]:
        """How the next step is looked at, and its learning rate, where it is."""
        watch = None if self.health is None else self.health.watch(core, self.committed)
        return watch, 0.0 if watch is None else learning_rate(core)

    @property
    def forward(self) -> Callable[[Any], tuple[Any, Any]]:
        """Batch → loss and outputs, as `fit` has them."""
        assert self._fit_step is not None
        return self._fit_step.forward

    def _respond(self, data: Any, found: dict[str, Any]) -> None:
        """What follows a held step, on the host."""
        assert self._core is not None
        assert self._held is not None
        strategy, count = self._model.distribute_strategy, self.replicas.count
        flagged = [found["flagged"]] if count == 1 else each_of(strategy, found["flagged"], count)
        verdict = (self._custom or self._core).verdict(tf.reduce_any(tf.stack(flagged), 0))
        scale = self.scaler.check() if verdict.gradients_only else None
        if self._core.is_expected(verdict, first_of(found["calibrating"])):
            self.overflows += 1
            return
        self.held += 1
        batches = [
            cast_data(self.policy, d) for d in ([data] if count == 1 else each_of(strategy, data, count))
        ]
        put_back = kept_apart(self._everything()) if count > 1 else None
        try:
            told = self._held.respond(
                self.forward,
                batches,
                verdict,
                self.committed,
                scale,
                replicas=count > 1,
                own=self._custom,
            )
        finally:
            if put_back is not None:
                put_back()
        self.findings.append(told)

    # --- what a response does ------------------------------------------------------------------------

    def go_back(self, at_least: int) -> int:
        """See `Actions`."""
        assert self._points is not None
        steps = self._points.go_back(self.committed, at_least)
        self.committed -= steps
        return steps

    def lower_learning_rate(self, factor: float) -> None:
        """See `Actions`."""
        rate = self._model.optimizer.learning_rate
        rate.assign(rate * factor)

    def promote(self, layer: str) -> Plan:
        """See `Actions`."""
        model = self._model
        self.policy = promoted(self.policy, layer)
        with model.distribute_strategy.scope():
            self.plan, notes = resolve(self.policy, describe(model), device_capability(self._device))
            self.findings += [*notes, *apply(model, self.plan).findings]
            self._prepare()
        self._make_train_function()
        return self.plan

    def _keep(self, step: int) -> tuple[Restore, Restore]:
        back = kept_apart([*self._everything(), *self.scaler.variables()])
        return back, lambda: None

    def _everything(self) -> list[Any]:
        """What a step may change."""
        assert self._core is not None
        if self._custom is not None:
            return self._custom.everything
        values = [v._value for v in self._model.trainable_variables]
        return [*values, *self._core.updates.variables(), *self._core.snapshot.variables]
