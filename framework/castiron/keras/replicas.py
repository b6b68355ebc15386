"""One decision for all replicas of a `tf.distribute` strategy.

Each replica looks at its own loss and statistics; what they saw and their gradients are summed over all of
them, so that every replica commits or holds alike. What is not finite on one is not finite in the sum.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from keras.src.optimizers.base_optimizer import BaseOptimizer

_LOCAL = (
    "_apply_weight_decay",
    "_backend_increment_gradient_accumulators",
    "_backend_update_step",
    "_overwrite_model_variables_with_average_value",
)


class Alone:
    """A single replica: there is nobody to agree with."""

    count = 1

    def gradients(self, gradients: Sequence[Any]) -> list[Any]:
        """Gradients summed over the replicas."""
        return list(gradients)

    def all_good(self, good: Any) -> Any:
        """Whether every replica says so: boolean, in the graph."""
        return good

    def agree(self, good: Any, loss: Any) -> tuple[Any, Any]:
        """Whether every replica says so, and the loss to tell."""
        return self.all_good(good), loss

    def settle(self) -> None:
        """What all replicas do together once a step was applied or held."""


class Replicas(Alone):
    """Several replicas, in the function that `strategy.run` runs."""

    def __init__(self, count: int) -> None:
        self.count = count

    def gradients(self, gradients: Sequence[Any]) -> list[Any]:
        present = [g for g in gradients if g is not None]
        if not present:
            return list(gradients)
        context = tf.distribute.get_replica_context()
        summed = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, present))
        return [None if g is None else next(summed) for g in gradients]

    def all_good(self, good: Any) -> Any:
        bad = tf.cast(tf.logical_not(good), tf.float32)
        context = tf.distribute.get_replica_context()
        return tf.equal(context.all_reduce(tf.distribute.ReduceOp.SUM, bad), 0.0)


def replicas_of(strategy: Any) -> Alone:
    """Those of a strategy."""
    count = int(strategy.num_replicas_in_sync)
    return Replicas(count) if count > 1 else Alone()


def update_locally(optimizer: Any) -> None:
    """Have a Keras optimizer update the variables of its own replica, from gradients that are summed already.

    Its own way there leads through all replicas at once, which TensorFlow allows at the top of a function
    only, and not where a step is applied or not.
    """
    for name in _LOCAL:
        optimizer.__dict__[name] = types.MethodType(getattr(BaseOptimizer, name), optimizer)
    for variable in optimizer.variables:
        if hasattr(variable._value, "_aggregation"):  # the count of steps is the first replica's otherwise
            variable._value._aggregation = tf.VariableAggregation.NONE


def first_of(values: Any) -> Any:
    """Of values that are the same on every replica, those of the first."""
    return tf.nest.map_structure(lambda v: v.values[0] if hasattr(v, "values") else v, values)


def each_of(strategy: Any, values: Any, count: int) -> list[Any]:
    """The values of each replica."""
    flat = [strategy.experimental_local_results(v) for v in tf.nest.flatten(values)]
    return [tf.nest.pack_sequence_as(values, [v[i] for v in flat]) for i in range(count)]


def kept_apart(variables: Sequence[Any]) -> Callable[[], None]:
    """Keep what each replica has in its copy of these variables. → puts it back."""
    parts = [p for v in variables for p in getattr(v, "values", (v,))]
    values = [p.read_value() for p in parts]

    def put_back() -> None:
        for part, value in zip(parts, values, strict=True):
            part.assign(value)

    return put_back
