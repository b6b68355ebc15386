"""TensorFlow's table of gradients, which is the process's own and only grows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tensorflow.python.framework import ops


@contextlib.contextmanager
def gradients_forgotten() -> Iterator[None]:
    """Take what was entered within it out again.

    `tf.custom_gradient` (and so `tf.nn.silu` and others) enters a function for each of its calls in a graph,
    which holds on to the graph: whoever trains again and again in one process would keep the graphs of all
    trainings. The functions are looked up while gradients are built; a graph that is built does without.
    """
    table = ops.gradient_registry
    before = set(table.list())
    try:
        yield
    finally:
        for name in set(table.list()) - before:
            del table._registry[name]
