"""A `train_step` of a model's own: run whole, and taken back where what it left is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from castiron.diagnostics import ConfigError, Place, finding
from castiron.keras.dtypes import is_float
from castiron.keras.guard import all_finite, flags, verdict_of
from castiron.keras.modules import stored_dtype, walk
from castiron.keras.replay.values import named_tensors
from castiron.keras.snapshot import Snapshot
from castiron.keras.step import StepCore
from castiron.training.held import Verdict


class CustomStep:
    """A model's own `train_step` under guard.

    What it does in between cannot be seen from outside. Parameters, buffers and whatever tensors it returns
    are looked at afterwards, and the states of its optimizers where the policy watches them; where one is not
    finite, everything that a step may have changed is put back. Replay runs the whole step again.

    Args:
        own: the model's `train_step`.

    Raises:
        ConfigError: it cannot be guarded (X815), with the reason.
    """

    def __init__(self, model: Any, core: StepCore, own: Callable[[Any], Any]) -> None:
        self._core, self._own = core, own
        self._parameters = {
            name: v._value for name, v in zip(core._names, core.updates.parameters, strict=True)
        }
        name = f"{type(model).__name__}.train_step"
        check_custom(model, core)
        others = other_optimizers(model)
        for attribute, optimizer in others.items():
            if not optimizer.built:
                raise refused(
                    f"{name} has an optimizer '{attribute}' that is not built, so that it is not known what "
                    "it will change",
                    f"model.{attribute}.build(the variables that it trains) before fit",
                    "an optimizer without variables",
                )
        core.others = [v for optimizer in others.values() for v in optimizer.variables]
        more = [v._value for v in core.others]
        self.everything: list[Any] = [
            *self._parameters.values(), *core.updates.variables(), *more, *core.snapshot.variables,
        ]  # fmt: skip
        """tf.Variables of all that the step may change."""
        kinds = {"optimizer": model.optimizer, **others}
        self.optimizers: dict[str, Any] = {
            type(o).__name__ + (f" '{n}'" if others else ""): o for n, o in kinds.items() if o is not None
        }
        """Name, as it is told → optimizer."""
        self.names: list[tuple[str, str]] = []
        """(what, name) of each flag of the function that was traced last."""

    @property
    def why_not_replayed(self) -> str:
        """Why a step cannot be run again; empty where it can."""
        count = self._core.replicas.count
        return "" if count == 1 else f"it runs on {count} replicas at once, and replay on one device"

    def __call__(self, data: Any) -> tuple[dict[str, Any], Any]:
        """One step, in the graph. → what the decision was, and the logs."""
        whole = Snapshot(self.everything)
        before = whole.take()
        logs = self._own(data)
        left = {
            what: {n: tf.convert_to_tensor(v) for n, v in named.items()}
            for what, named in self._watched(logs).items()
        }
        self.names = [(what, name) for what, named in left.items() for name in named]
        tensors = [t for named in left.values() for t in named.values()]
        good = self._core.replicas.all_good(all_finite(tensors))

        def undo() -> tuple[Any, Any]:
            seen = flags(left)
            whole.put_back(before)
            return tf.constant(False), seen

        clean = tf.zeros([len(self.names)], tf.bool)
        committed, flagged = tf.cond(good, lambda: (tf.constant(True), clean), undo)
        told = {"committed": committed, "flagged": flagged, "calibrating": tf.constant(False)}
        return told, logs

    def verdict(self, flagged: Any) -> Verdict:
        """The verdict of a step that was taken back, on the host."""
        return verdict_of(self.names, flagged)

    def run(self, data: Any) -> dict[str, dict[str, Any]]:
        """Run the step, and decide nothing. → what is watched → name → tensor or tf.Variable."""
        return self._watched(self._own(data))

    def _watched(self, logs: Any) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {
            "logs": {n or "loss": t for n, t in named_tensors(logs) if t.dtype.is_floating},
            "buffers": {n: v._value for n, v in self._core._buffers.items()},
            "parameters": self._parameters,
        }
        if "optimizer" in self._core.policy.guard.watch:
            states = [v for o in self.optimizers.values() for v in o.variables]
            found["optimizer"] = {v.path: v._value for v in states if is_float(stored_dtype(v))}
        return found


def other_optimizers(model: Any) -> dict[str, Any]:
    """Optimizers that a model keeps beside the one it was compiled with: where → optimizer."""
    found: dict[int, tuple[str, Any]] = {}
    for path, layer in walk(model):
        for name, value in vars(layer).items():
            if isinstance(value, (keras.Layer, keras.Variable)) or name.startswith("_self_"):
                continue
            for suffix, optimizer in optimizers_in(value):
                if optimizer is not model.optimizer:
                    where = f"{path}.{name}{suffix}" if path else f"{name}{suffix}"
                    found.setdefault(id(optimizer), (where, optimizer))
    return dict(found.values())


def optimizers_in(value: Any) -> Iterator[tuple[str, Any]]:
    """(`['key']` or `[0]`, optimizer) of what an attribute holds."""
    if isinstance(value, keras.optimizers.Optimizer):
        yield "", value
    elif isinstance(value, (list, tuple, dict)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            for suffix, found in optimizers_in(item):
                yield f"[{key!r}]{suffix}", found


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
    strategy = model.distribute_strategy
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) and strategy.num_replicas_in_sync > 1:
        raise refused(
            "Keras's fit does not train in several processes (as of 3.15: it fails before the first step)",
            "a strategy of one process, or a recipe: castiron train with trainer.devices",
            "MultiWorkerMirroredStrategy",
        )
    if type(model).make_train_function is not keras.Model.make_train_function:
        raise refused(
            f"{type(model).__name__}.make_train_function is the model's own, and what it trains with is not "
            "known",
            "Keras's own make_train_function; a train_step of the model's own is guarded",
            "another",
        )
