"""How an update reaches parameters narrower than it: master copies, stochastic rounding, and the format of
the optimizer's state.

A Keras optimizer computes in the format of the parameter and keeps its state in it. In bfloat16 that is not
merely inexact: 1 - 0.999 is 0 there, so that Adam's bias correction makes every update zero. So the optimizer
is given a wide stand-in for every parameter narrower than the state, and what it makes of that is rounded to
the parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from castiron.formats import is_wider, widest
from castiron.keras.dtypes import is_float, tensorflow_name
from castiron.keras.modules import stored_dtype
from castiron.keras.precision import replace_value
from castiron.policy import PrecisionPolicy


class Updates:
    """An optimizer, its parameters, and what stands between them.

    Args:
        optimizer: of Keras, not built yet, or built on these very variables.
        parameters: the model's trainable variables.
        seed: of the stochastic rounding.
    """

    def __init__(
        self, optimizer: Any, parameters: Sequence[Any], policy: PrecisionPolicy, *, seed: int = 0
    ) -> None:
        self.optimizer = optimizer
        self.parameters = list(parameters)
        self._keeps = policy.updates.master is not None
        self._stochastic = policy.updates.rounding == "stochastic"
        self._state = tensorflow_name(policy.state)
        wide = [self._work_dtype(stored_dtype(v), policy) for v in self.parameters]
        self.targets = [
            v if dtype == stored_dtype(v) else _stand_in(v, dtype)
            for v, dtype in zip(self.parameters, wide, strict=True)
        ]
        """What the optimizer updates: the parameter itself, or its stand-in."""
        self._seed = tf.Variable([seed, 0], dtype=tf.int64, trainable=False, name="rounding_seed")
        if not optimizer.built:
            optimizer.build(self.targets)
            self._cast_state()

    @property
    def keeps(self) -> bool:
        """Whether parameters have master copies that live on from step to step."""
        return self._keeps and any(t is not v for t, v in zip(self.targets, self.parameters, strict=True))

    @staticmethod
    def _work_dtype(own: str, policy: PrecisionPolicy) -> str:
        master = policy.updates.master
        if master is not None and is_wider(master, own):
            return tensorflow_name(master)
        return tensorflow_name(widest("float32", own)) if own in ("bfloat16", "float16") else own

    def _cast_state(self) -> None:
        """Give the optimizer's moments the declared format; counters and rates keep theirs."""
        shapes = {tuple(v.shape) for v in self.targets}
        learning_rate = getattr(self.optimizer, "_learning_rate", None)
        for slot in self.optimizer.variables:
            named = slot is learning_rate or tuple(slot.shape) not in shapes
            if named or not is_float(stored_dtype(slot)) or stored_dtype(slot) == self._state:
                continue
            replace_value(slot, tf.cast(slot._value, self._state), self._state)

    def apply(self, gradients: Sequence[Any]) -> None:
        """One step of the optimizer, in the graph. Gradients come in the order of the parameters; None is
        left out."""
        for own, target in zip(self.parameters, self.targets, strict=True):
            if target is not own and not self._keeps:
                target.assign(tf.cast(own._value, stored_dtype(target)))
        pairs = [
            (tf.cast(g, stored_dtype(target)), target)
            for g, target in zip(gradients, self.targets, strict=True)
            if g is not None
        ]
        self.optimizer.apply([g for g, _ in pairs], [v for _, v in pairs])
        for i, (own, target) in enumerate(zip(self.parameters, self.targets, strict=True)):
            if target is not own:
                own.assign(self._rounded(target._value, stored_dtype(own), i))
        if self._stochastic:
            self._seed.assign_add(tf.constant([0, 1], tf.int64))

    def variables(self) -> list[Any]:
        """tf.Variables of everything that a step changes beside the parameters: state, counters, masters."""
        return [*(v._value for v in self.optimizer.variables), *self.masters(), self._seed]

    def masters(self) -> list[Any]:
        """tf.Variables of the master copies that live on from step to step."""
        if not self._keeps:
            return []
        return [t._value for t, v in zip(self.targets, self.parameters, strict=True) if t is not v]

    def take_over(self, optimizer: Any, former: Updates | None = None) -> None:
        """Go on from the state of another optimizer of the same kind, and from the masters that it had."""
        for before, after in zip(optimizer.variables, self.optimizer.variables, strict=False):
            if tuple(before.shape) == tuple(after.shape):
                after.assign(tf.cast(before._value, stored_dtype(after)))
        if former is not None:
            self._seed.assign(former._seed)
            for own, old, new in zip(self.parameters, former.targets, self.targets, strict=True):
                if old is not new and new is not own:
                    new.assign(tf.cast(old._value, stored_dtype(new)))

    def adopt(self) -> None:
        """The parameters were written to from outside (a loaded checkpoint): masters follow where they are
        not the parameter's value with more digits."""
        for own, target in zip(self.parameters, self.targets, strict=True):
            if target is not own:
                wide = tf.cast(own._value, stored_dtype(target))
                same = tf.cast(target._value, stored_dtype(own)) == own._value
                target.assign(tf.where(same, tf.convert_to_tensor(target._value), wide))

    def _rounded(self, wide: Any, dtype: str, index: int) -> Any:
        if not self._stochastic or dtype != "bfloat16":
            return tf.cast(wide, dtype)
        seed = self._seed + tf.constant([index * 1_000_003, 0], tf.int64)
        return stochastic_round(wide, seed)


def stochastic_round(wide: Any, seed: Any) -> Any:
    """float32 to bfloat16, up or down with probabilities that keep the mean: 16 random bits are added below
    the ones that stay, and the rest is cut off. What is not finite is rounded as ever.

    Args:
        seed: int64 [2].
    """
    wide = tf.cast(wide, tf.float32)
    bits = tf.bitcast(wide, tf.uint32)
    noise = tf.random.stateless_uniform(tf.shape(wide), seed, minval=0, maxval=1 << 16, dtype=tf.int32)
    lifted = tf.bitwise.bitwise_and(bits + tf.cast(noise, tf.uint32), tf.constant(0xFFFF0000, tf.uint32))
    rounded = tf.cast(tf.bitcast(lifted, tf.float32), tf.bfloat16)
    return tf.where(tf.math.is_finite(wide), rounded, tf.cast(wide, tf.bfloat16))


def _stand_in(variable: Any, dtype: str) -> Any:
    wide = keras.Variable(
        tf.cast(variable._value, dtype), dtype=dtype, trainable=True, autocast=False, name=variable.name
    )
    # Optimizers leave variables out of weight decay, and name their state, by the path.
    wide._path = variable.path
    return wide


def updates_of(model: Any, policy: PrecisionPolicy, former: Updates | None, *, seed: int) -> Updates:
    """The optimizer that a model was compiled with, at work under a policy. What it has learned is kept.

    Args:
        former: what was at work on the model before, where anything was.
    """
    optimizer = model.optimizer
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        model.optimizer = optimizer = optimizer.inner_optimizer
    fresh = optimizer
    if optimizer.built:  # on variables of other formats, maybe
        model.optimizer = fresh = type(optimizer).from_config(optimizer.get_config())
    with model.distribute_strategy.scope():
        updates = Updates(fresh, model.trainable_variables, policy, seed=seed)
        if fresh is not optimizer:
            updates.take_over(optimizer, former if former and former.optimizer is optimizer else None)
    return updates
