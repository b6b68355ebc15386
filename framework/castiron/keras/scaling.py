"""Loss scaling within declared bounds: none, static or dynamic, in one shape.

Keras's own LossScaleOptimizer has neither bounds nor patience: its scale falls to 0, and the first good step
after that makes NaN of every weight. Here the scale, the count of good steps and of overflows are variables
beside the model's; all but `check`, `counts` and the state runs inside a compiled step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from castiron.diagnostics import Finding
from castiron.policy.sections import DynamicScaling, NoScaling, StaticScaling
from castiron.training.scale_findings import check_invertible, check_kind, look_at


class NoScaler:
    """The loss is not scaled: every method does the least it can."""

    kind = "none"
    active = False

    def scale(self, loss: Any) -> Any:
        """The loss, times the scale."""
        return loss

    def unscale(self, gradients: Sequence[Any]) -> list[Any]:
        """The gradients, divided by the scale."""
        return list(gradients)

    def update(self, overflowed: Any) -> None:
        """Choose the next scale, once per step. `overflowed`: boolean, whether a gradient is not finite."""

    def may_fall(self) -> Any:
        """Whether the scale stands above its floor: boolean, in the graph. An overflow is expected then."""
        return tf.constant(False)

    def variables(self) -> list[Any]:
        """The variables that a held step does not put back: the scale follows from what was seen."""
        return []

    def get_scale(self) -> float:
        """The scale."""
        return 1.0

    def counts(self) -> dict[str, int]:
        """`overflows`: steps with gradients that were not finite; `at_floor`: how many of them in a row, up
        to the last step, met a scale that could fall no further."""
        return {"overflows": 0, "at_floor": 0}

    def check(self) -> Finding | None:
        """What there is to say since the last call: S401 once the scale has stood at its floor for `patience`
        overflows, S403 (information) where gradients overflowed, else None."""
        return None

    def state_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ConfigError: the state is of another kind of scaling (S404).
        """
        check_kind(self.kind, state)


class StaticScaler(NoScaler):
    """One constant scale.

    Raises:
        ConfigError: the scale, or one divided by it, is not finite in float32 (S402).
    """

    kind = "static"
    active = True

    def __init__(self, scaling: StaticScaling) -> None:
        check_invertible("scale", scaling.scale)
        self._initial = scaling.scale
        self._scale = tf.Variable(scaling.scale, dtype=tf.float32, trainable=False, name="loss_scale")
        self._overflows = tf.Variable(0, dtype=tf.int64, trainable=False, name="overflows")
        self._at_floor = tf.Variable(0, dtype=tf.int64, trainable=False, name="at_floor")

    def scale(self, loss: Any) -> Any:
        return loss * tf.cast(self._scale, loss.dtype)

    def unscale(self, gradients: Sequence[Any]) -> list[Any]:
        inverse = 1.0 / self._scale
        return [None if g is None else g * tf.cast(inverse, g.dtype) for g in gradients]

    def update(self, overflowed: Any) -> None:
        self._overflows.assign_add(tf.cast(overflowed, tf.int64))
        self._change(overflowed)

    def _change(self, overflowed: Any) -> None:
        """A static scale stays as it is."""

    def variables(self) -> list[Any]:
        return [self._scale, self._overflows, self._at_floor]

    def get_scale(self) -> float:
        return float(self._scale.numpy())

    def counts(self) -> dict[str, int]:
        return {"overflows": int(self._overflows.numpy()), "at_floor": int(self._at_floor.numpy())}

    def state_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "scale": self.get_scale(), **self.counts()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_kind(self.kind, state)
        self._overflows.assign(int(state["overflows"]))


class DynamicScaler(StaticScaler):
    """The scale grows after `interval` good steps in a row, falls after a bad one, and stays in its bounds.

    Raises:
        ConfigError: a bound, or one divided by it, is not finite in float32 (S402).
    """

    kind = "dynamic"

    def __init__(self, scaling: DynamicScaling) -> None:
        check_invertible("min", scaling.min)
        check_invertible("max", scaling.max)
        super().__init__(StaticScaling(scale=scaling.initial))
        self.scaling = scaling
        self._good = tf.Variable(0, dtype=tf.int64, trainable=False, name="good_steps")
        self._reported = 0

    def may_fall(self) -> Any:
        return self._scale > self.scaling.min

    def _change(self, overflowed: Any) -> None:
        s = self.scaling
        scale = tf.convert_to_tensor(self._scale)
        # in a row: an overflow that met the floor adds one, any good step starts anew
        at_floor = self._at_floor + tf.cast(scale <= s.min, tf.int64)
        self._at_floor.assign(tf.where(overflowed, at_floor, tf.zeros_like(at_floor)))
        good = self._good + 1
        grows = good >= s.interval
        grown = tf.where(grows, scale * s.growth, scale)
        self._scale.assign(tf.clip_by_value(tf.where(overflowed, scale * s.backoff, grown), s.min, s.max))
        self._good.assign(tf.where(tf.logical_or(overflowed, grows), tf.zeros_like(good), good))

    def variables(self) -> list[Any]:
        return [*super().variables(), self._good]

    def check(self) -> Finding | None:
        counts = self.counts()
        new = counts["overflows"] - self._reported
        self._reported = counts["overflows"]
        return look_at(self.scaling, counts, new, self.get_scale)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "good": int(self._good.numpy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; a scale out of the present bounds is set to the nearer one.

        Raises:
            ConfigError: the state is of another kind of scaling (S404), or its scale is not finite (S402).
        """
        check_kind(self.kind, state)
        check_invertible("saved scale", float(state["scale"]))
        self._scale.assign(min(max(float(state["scale"]), self.scaling.min), self.scaling.max))
        self._overflows.assign(int(state["overflows"]))
        self._at_floor.assign(int(state["at_floor"]))
        self._good.assign(int(state["good"]))
        self._reported = int(state["overflows"])


Scaler = NoScaler
"""What every scaler is to those who call it."""


def make_scaler(scaling: NoScaling | StaticScaling | DynamicScaling) -> Scaler:
    """The scaler that a policy's `scaling` section declares.

    Raises:
        ConfigError: a scale that cannot be inverted in float32 (S402).
    """
    if isinstance(scaling, DynamicScaling):
        return DynamicScaler(scaling)
    return StaticScaler(scaling) if isinstance(scaling, StaticScaling) else NoScaler()
