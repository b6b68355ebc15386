"""`enforce`: any Keras model under a precision policy, with its own compile, fit, evaluate, predict and save.

model = enforce(keras_model, "bf16-mixed")
model.compile(optimizer="adam", loss="mse")
model.fit(x, y, callbacks=[...])
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from castiron.diagnostics import ConfigError, Finding, NumericIncident, Place, finding
from castiron.keras.capability import device_capability
from castiron.keras.guard import all_finite
from castiron.keras.held import HeldSteps, check_response
from castiron.keras.inputs import cast_inputs
from castiron.keras.loss import to_loss_dtype
from castiron.keras.modules import describe
from castiron.keras.precision import apply
from castiron.keras.scaling import make_scaler
from castiron.keras.snapshot import Snapshot, volatile_variables
from castiron.keras.switches import matmul_switches
from castiron.keras.transaction import StepCore, check_watch
from castiron.keras.updates import Updates
from castiron.policy import Plan, PrecisionPolicy, resolve
from castiron.training.held import Verdict, describe_held
from castiron.training.incident import Incident
from castiron.training.responses import Responses

_ROLES = {"x": "feature", "y": "target", "sample_weight": "weight"}


def enforce(
    model: Any,
    policy: PrecisionPolicy | str | Mapping[str, Any] = "float32",
    *,
    device: str = "auto",
    incidents: str | Path | None = None,
    seed: int = 0,
) -> Any:
    """Put a built Keras model under a policy. → the same model.

    Its variables are cast and each layer gets its formats at once. From then on every batch that `fit` sees
    is cast by role (x features, y targets), and every step is a transaction: one that is not finite changes
    no variable, no optimizer slot, no statistic, no metric, and is answered as `guard.response` says. Keras's
    callbacks, metrics, `steps_per_epoch`, class and sample weights work as ever. Loss scaling is the
    policy's; Keras's own is not put on top. The state is in `model.castiron`.

    A model with a `train_step` of its own is guarded from outside: its step runs whole, and is taken back
    where what it leaves is not finite.

    Args:
        model: built: called once, or with an `Input`.
        policy: a policy, a preset's name, a short string, or a mapping.
        device: what the plan is held against.
        incidents: a folder; each held step is written there as `step-N/`.
        seed: of stochastic rounding.

    Raises:
        PlanError, HardwareError: the policy does not fit the model, or the device.
        ConfigError: the model does something that cannot be guarded (X815), with the reason.
        NumericIncident: from `fit`; a step was held and the response says so, the budget is spent (N510), or
            the loss scale stands at its floor (S401).
    """
    given = PrecisionPolicy.model_validate(policy)
    Enforcement(model, given, device, incidents, seed)
    return model


class Enforcement:
    """A policy in force on a Keras model: `model.castiron`."""

    def __init__(
        self,
        model: Any,
        policy: PrecisionPolicy,
        device: str,
        incidents: str | Path | None,
        seed: int,
    ) -> None:
        check_watch(policy)
        check_response(policy.guard)
        self._model, self.policy, self._seed = model, policy, seed
        self._folder = incidents
        self.custom = type(model).train_step is not keras.Model.train_step
        """Whether the model has a `train_step` of its own."""
        self._check()
        plan, notes = resolve(policy, describe(model), device_capability(device))
        self.plan: Plan = plan
        """The policy, resolved against the model and device."""
        self.findings: list[Finding] = [*notes, *apply(model, plan).findings]
        """What there is to say that does not stop training: of the plan, and of held steps."""
        self.scaler = make_scaler(policy.scaling)
        self.responses: Responses = Responses(policy.guard)
        self.committed = 0
        """Steps that were applied."""
        self.overflows = 0
        """Steps held because gradients overflowed while the loss scale could still fall."""
        self.held = 0
        """Steps held for more than that."""
        self._core: StepCore | None = None
        self._held: HeldSteps | None = None
        self._own = {
            name: getattr(model, name)
            for name in ("compile", "fit", "evaluate", "predict", "make_train_function", "train_step")
        }
        model.__dict__["castiron"] = self
        for name, replacement in (
            ("compile", self._compile),
            ("fit", self._fit),
            ("evaluate", self._evaluate),
            ("predict", self._predict),
            ("make_train_function", self._make_train_function),
        ):
            model.__dict__[name] = replacement
        if model.compiled:
            self._prepare()

    @property
    def incidents(self) -> list[Incident]:
        """The records of the held steps that were replayed."""
        return self._held.incidents if self._held else []

    # --- in place of the model's own ---------------------------------------------------------------

    def _compile(self, *args: Any, **kwargs: Any) -> None:
        kwargs["auto_scale_loss"] = False  # the policy says what is scaled
        with self._declared():
            self._own["compile"](*args, **kwargs)
            self._prepare()

    def _fit(self, x: Any = None, y: Any = None, **kwargs: Any) -> Any:
        with self._declared():
            if kwargs.get("sample_weight") is not None:
                kwargs["sample_weight"] = self._cast(kwargs["sample_weight"], "sample_weight")
            if kwargs.get("validation_data") is not None:
                kwargs["validation_data"] = self._cast_all(kwargs["validation_data"])
            return self._own["fit"](self._cast(x, "x"), self._cast(y, "y"), **kwargs)

    def _evaluate(self, x: Any = None, y: Any = None, **kwargs: Any) -> Any:
        with self._declared():
            return self._own["evaluate"](self._cast(x, "x"), self._cast(y, "y"), **kwargs)

    def _predict(self, x: Any, **kwargs: Any) -> Any:
        with self._declared():
            return self._own["predict"](self._cast(x, "x"), **kwargs)

    @contextlib.contextmanager
    def _declared(self) -> Iterator[None]:
        """Within it, process-wide switches are as declared. Keras casts data and losses to floatx: where
        float64 is declared, that is float64 meanwhile."""
        floatx = keras.config.floatx()
        wanted = "float64" if self.policy.param == "float64" or self.policy.loss == "float64" else "float32"
        with matmul_switches(self.policy.matmul):
            keras.config.set_floatx(wanted)
            try:
                yield
            finally:
                keras.config.set_floatx(floatx)

    def _cast(self, given: Any, name: str) -> Any:
        if isinstance(given, tf.data.Dataset):
            return given.map(lambda *batch: self._cast_all(batch if len(batch) > 1 else batch[0]))
        if given is None or isinstance(given, keras.utils.PyDataset) or hasattr(given, "__next__"):
            return given
        return cast_inputs({name: given}, self.policy, role=_ROLES[name])[name]

    def _cast_all(self, data: Any) -> Any:
        """(x, y, sample_weight), or what of these there is."""
        if isinstance(data, tf.data.Dataset):
            return self._cast(data, "x")
        if not isinstance(data, tuple):
            return self._cast(data, "x")
        parts = [self._cast(part, name) for part, name in zip(data, _ROLES, strict=False)]
        return tuple(parts)

    # --- the step ----------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Once the model has an optimizer."""
        model = self._model
        optimizer = model.optimizer
        if optimizer is None:
            return
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            model.optimizer = optimizer = optimizer.inner_optimizer
        if optimizer.built:
            optimizer = type(optimizer).from_config(optimizer.get_config())
            model.optimizer = optimizer
        updates = Updates(optimizer, model.trainable_variables, self.policy, seed=self._seed)
        if self.custom:
            self._check_custom(updates)
        metrics = [v._value for m in model.metrics for v in m.variables]
        self._core = StepCore(model, updates, self.policy, self.scaler, jobs=metrics)
        self._held = HeldSteps(self._core, self.plan, None, self._folder)
        self._held.responses = self.responses
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
        step: Callable[[Any], Any] = self._custom_step if self.custom else self._step
        if not model.run_eagerly:
            step = tf.function(
                step, jit_compile=model.jit_compile or None, reduce_retracing=True, autograph=False
            )

        def train(iterator: Any) -> Any:
            logs: Any = None
            for _ in range(model.steps_per_execution):
                try:
                    data = next(iterator)
                except StopIteration:
                    if logs is None:
                        raise
                    break
                found, logs = step(data)
                if bool(found["committed"]):
                    self.committed += 1
                else:
                    self._respond(data, found)
            return logs

        model.train_function = train
        return train

    def _step(self, data: Any) -> tuple[dict[str, Any], Any]:
        assert self._core is not None
        result = self._core.run(self._forward, [self._cast_all(data)], self._update_metrics)
        return _told(result), self._model.get_metrics_result()

    def _forward(self, data: Any) -> tuple[Any, Any]:
        model = self._model
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        outputs = model(x, training=True) if model._call_has_training_arg else model(x)
        outputs = to_loss_dtype(outputs, self.policy.loss)
        loss = model._compute_loss(x=x, y=y, y_pred=outputs, sample_weight=sample_weight, training=True)
        return loss, outputs

    def _update_metrics(self, seen: list[tuple[Any, Any, Any]]) -> None:
        model = self._model
        ((data, loss, outputs),) = seen
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        first = next(t for t in keras.tree.flatten(x) if t is not None)
        model._loss_tracker.update_state(loss, sample_weight=tf.shape(first)[0])
        model.compute_metrics(x, y, outputs, sample_weight=sample_weight)

    def _custom_step(self, data: Any) -> tuple[dict[str, Any], Any]:
        """A `train_step` of the model's own: run it, look at what it left, take it back where that is bad."""
        model, core = self._model, self._core
        assert core is not None
        values = [v._value for v in model.trainable_variables]
        whole = Snapshot([*values, *core.updates.variables(), *core.snapshot.variables])
        before = whole.take()
        logs = self._own["train_step"](self._cast_all(data))
        left = [tf.convert_to_tensor(v) for v in values]
        left += [tf.convert_to_tensor(v._value) for v in core._buffers.values()]
        left += [tf.convert_to_tensor(t) for t in keras.tree.flatten(logs) if tf.is_tensor(t)]
        good = all_finite(left)

        def undo() -> Any:
            whole.put_back(before)
            return tf.constant(False)

        committed = tf.cond(good, lambda: tf.constant(True), undo)
        told = {"committed": committed, "flagged": tf.zeros([0], tf.bool), "calibrating": tf.constant(False)}
        return told, logs

    def _respond(self, data: Any, found: dict[str, Any]) -> None:
        """What follows a held step, on the host."""
        assert self._core is not None
        assert self._held is not None
        if self.custom:
            self.held += 1
            verdict = Verdict(True, {"what the model's own train_step left": ()})
            decision = self.responses.decide(self.committed)
            told = describe_held(verdict, self.committed, self.policy.guard.watch)
            if decision.response == "raise":
                raise NumericIncident([*decision.findings, told])
            self.findings.append(told)
            return
        verdict = self._core.verdict(found["flagged"])
        scale = self.scaler.check() if verdict.gradients_only else None
        if self._core.is_expected(verdict, found["calibrating"]):
            self.overflows += 1
            return
        self.held += 1
        batch = self._cast_all(data)
        told = self._held.respond(self._forward, [batch], verdict, self.committed, scale)
        self.findings.append(told)

    # --- what cannot be guarded ----------------------------------------------------------------------

    def _check(self) -> None:
        model = self._model
        if "castiron" in model.__dict__:
            raise _refused("the model is under a policy already", "a model that is not", "enforce twice")
        if getattr(model, "distribute_strategy", None) and model.distribute_strategy.num_replicas_in_sync > 1:
            raise _refused(
                "replicas would each decide for themselves whether a step is good",
                "a model of one replica",
                f"{model.distribute_strategy.num_replicas_in_sync} replicas",
            )

    def _check_custom(self, updates: Updates) -> None:
        name = f"{type(self._model).__name__}.train_step"
        if self.scaler.active:
            raise _refused(
                f"{name} takes its own gradients: its loss is not scaled, and gradients vanish in float16",
                "a policy without loss scaling, or Keras's own train_step",
                f"scaling {self.scaler.kind}",
            )
        if any(own is not target for own, target in zip(updates.parameters, updates.targets, strict=True)):
            raise _refused(
                f"{name} gives its gradients to the optimizer itself, and Keras's optimizers compute in the "
                "format of the parameter",
                "parameters in float32 or wider, or Keras's own train_step",
                f"param {self.policy.param}",
            )


def _told(result: Any) -> dict[str, Any]:
    return {"committed": result.committed, "flagged": result.flagged, "calibrating": result.calibrating}


def _refused(message: str, expected: str, received: str) -> ConfigError:
    return ConfigError(
        finding(
            "X815",
            f"This cannot be guarded: {message}.",
            place=Place(op="enforce"),
            expected=expected,
            received=received,
            remedy="Leave the model as it is, or change what is named.",
        )
    )
