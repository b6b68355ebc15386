"""The compiled function of a step of `fit`, as Keras's own is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.tensorflow.trainer import reduce_per_replica

from castiron.keras.arguments import as_tensor, without_optionals
from castiron.keras.health.watch import Watch

ITERATORS = (tf.data.Iterator, tf.distribute.DistributedIterator)
"""What a graph can take batches from itself."""


def compiled_step(
    model: Any, own: Callable[[Any, Watch | None], tuple[Any, Any]], watch: Watch | None
) -> tuple[Any, Any]:
    """A step on an iterator that a graph cannot take from, and on one that it can: each of an iterator, to
    what the step gave and the batch.

    Args:
        own: batch, and how it is looked at, to what the decision was and the logs.
    """

    def step(data: Any) -> tuple[dict[str, Any], Any]:
        found, logs = own(without_optionals(data), watch)
        return found, reduce_per_replica(logs, model.distribute_strategy, "auto")

    if not model.run_eagerly:
        step = tf.function(
            step, jit_compile=model.jit_compile or None, reduce_retracing=True, autograph=False
        )

    def step_of(iterator: Any) -> Any:
        data = next(iterator)
        if not isinstance(iterator, ITERATORS):
            data = keras.tree.map_structure(as_tensor, data)
        return step(data), data

    return step_of, step_of if model.run_eagerly else tf.function(step_of, autograph=False)
