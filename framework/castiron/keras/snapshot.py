"""What a step changes before its optimizer does, kept so that a held step leaves nothing behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf


class Snapshot:
    """Variables as they were before a step: read in the graph, and written back in the graph.

    Reading costs nothing: TensorFlow copies a variable's buffer only when it is written to while somebody
    still holds the value that was read.

    Args:
        variables: tf.Variables; each once.
    """

    def __init__(self, variables: Sequence[Any]) -> None:
        self.variables = list({id(v): v for v in variables}.values())

    def take(self) -> list[Any]:
        """The present values."""
        return [tf.identity(v) for v in self.variables]

    def put_back(self, values: Sequence[Any]) -> None:
        """Write values that `take` gave back, bit for bit."""
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(value)


class Writes:
    """Which parameters a forward pass writes to, noted while it runs or is traced: spectral normalization,
    for one, divides its kernel anew at every step.

    Args:
        parameters: keras.Variables.
    """

    def __init__(self, parameters: Sequence[Any]) -> None:
        self._parameters = list(parameters)
        self._written: dict[int, Any] = {}
        self._depth = 0

    @property
    def written(self) -> list[Any]:
        """tf.Variables of those that were written to so far."""
        return [v._value for v in self._written.values()]

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Within it writes are noted. Replicas may be within it together."""
        self._depth += 1
        for v in self._parameters if self._depth == 1 else ():
            v.__dict__["_direct_assign"] = self._noting(v, v._direct_assign)
        try:
            yield
        finally:
            self._depth -= 1
            for v in self._parameters if self._depth == 0 else ():
                del v.__dict__["_direct_assign"]

    def _noting(self, variable: Any, assign: Any) -> Any:
        def noting(value: Any) -> None:
            self._written[id(variable)] = variable
            assign(value)

        return noting


def volatile_variables(model: Any) -> list[Any]:
    """tf.Variables that a forward pass may change: statistics, recurrent states, seeds, metrics of layers.

    Everything that the model holds and does not train, what layers keep in attributes beside that
    (`tf.Variable`, `tf.random.Generator`), and the process's own seed generator, which layers without a seed
    draw from.
    """
    trained = {id(v) for v in model.trainable_variables}
    found = [v._value for v in model.variables if id(v) not in trained]
    for layer in model._flatten_layers():
        states = getattr(layer, "states", None)
        if states is not None:
            found += [s._value for s in tf.nest.flatten(states) if hasattr(s, "_value")]
        found += [g.state._value for g in getattr(layer, "_seed_generators", ())]
        found += _kept_in_attributes(layer)
    return list({id(v): v for v in found}.values())


def _kept_in_attributes(layer: Any) -> list[Any]:
    """tf.Variables that Keras does not list: of a layer's own attributes, also in lists and mappings."""
    found = []
    for name, value in vars(layer).items():
        if name.startswith("_"):
            continue
        for leaf in keras.tree.flatten(value) if isinstance(value, (list, tuple, dict)) else [value]:
            if isinstance(leaf, tf.Variable):
                found.append(leaf)
            elif isinstance(leaf, tf.random.Generator):
                found.append(leaf.state)
    return found
