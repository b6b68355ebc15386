"""A `train_step` of a model's own: run whole, and taken back where what it left is not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from castiron.diagnostics import ConfigError, Place, finding
from castiron.keras.guard import all_finite
from castiron.keras.snapshot import Snapshot
from castiron.keras.step import StepCore


class CustomStep:
    """A model's own `train_step` under guard.

    What it does in between cannot be seen from outside. Parameters, buffers and whatever tensors it returns
    are looked at afterwards; where one is not finite, everything that a step may have changed is put back.

    Args:
        own: the model's `train_step`.

    Raises:
        ConfigError: it cannot be guarded (X815), with the reason.
    """

    def __init__(self, model: Any, core: StepCore, own: Callable[[Any], Any]) -> None:
        self._core, self._own = core, own
        self._values = [v._value for v in model.trainable_variables]
        name = f"{type(model).__name__}.train_step"
        check_custom(model, core)
        more = []
        for attribute, optimizer in vars(model).items():
            if not isinstance(optimizer, keras.optimizers.Optimizer) or optimizer is model.optimizer:
                continue
            if not optimizer.built:
                raise refused(
                    f"{name} has an optimizer '{attribute}' that is not built, so that it is not known what "
                    "it will change",
                    f"model.{attribute}.build(the variables that it trains) before fit",
                    "an optimizer without variables",
                )
            more += [v._value for v in optimizer.variables]
        self.everything = [*self._values, *core.updates.variables(), *more, *core.snapshot.variables]
        """tf.Variables of all that the step may change."""

    def __call__(self, data: Any) -> tuple[dict[str, Any], Any]:
        """One step, in the graph. → what the decision was, and the logs."""
        whole = Snapshot(self.everything)
        before = whole.take()
        logs = self._own(data)
        left = [tf.convert_to_tensor(v) for v in self._values]
        left += [tf.convert_to_tensor(v._value) for v in self._core._buffers.values()]
        left += [tf.convert_to_tensor(t) for t in keras.tree.flatten(logs) if tf.is_tensor(t)]
        good = self._core.replicas.all_good(all_finite(left))

        def undo() -> Any:
            whole.put_back(before)
            return tf.constant(False)

        committed = tf.cond(good, lambda: tf.constant(True), undo)
        told = {"committed": committed, "flagged": tf.zeros([0], tf.bool), "calibrating": tf.constant(False)}
        return told, logs


def refused(message: str, expected: str, received: str) -> ConfigError:
    """What is said of a model that cannot be guarded (X815)."""
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


def check_custom(model: Any, core: StepCore) -> None:
    """Refuse a `train_step` that a policy or a strategy asks too much of, with the reason (X815)."""
    name = f"{type(model).__name__}.train_step"
    updates = core.updates
    if core.scaler.active:
        raise refused(
            f"{name} takes its own gradients: its loss is not scaled, and gradients vanish in float16",
            "a policy without loss scaling, or Keras's own train_step",
            f"scaling {core.scaler.kind}",
        )
    if any(own is not target for own, target in zip(updates.parameters, updates.targets, strict=True)):
        raise refused(
            f"{name} gives its gradients to the optimizer itself, and Keras's optimizers compute in the "
            "format of the parameter",
            "parameters in float32 or wider, or Keras's own train_step",
            f"param {core.policy.param}",
        )


def check_model(model: Any) -> None:
    """Refuse what cannot be guarded, with the reason."""
    if "castiron" in model.__dict__:
        raise refused("the model is under a policy already", "a model that is not", "enforce twice")
    if type(model).make_train_function is not keras.Model.make_train_function:
        raise refused(
            f"{type(model).__name__}.make_train_function is the model's own, and what it trains with is not "
            "known",
            "Keras's own make_train_function; a train_step of the model's own is guarded",
            "another",
        )
