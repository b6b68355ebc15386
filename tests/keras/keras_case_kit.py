"""Small trainings in Keras that go wrong, or that only look so, and what castiron must say of them.

The names of the fields, and the titles, are those of `tests/cases`: the same table for the other wing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from expected_incident import Expected

from castiron import NumericIncident, PrecisionPolicy
from castiron.keras import transaction
from castiron.training.incident import Incident

MODES = ("graph", "eager", "jit")
L = keras.layers
INF, NAN = float("inf"), float("nan")
COMPILED = ("jit",)
UNCOMPILED = ("graph", "eager")


def features(rows: int = 8, width: int = 4) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, width)).astype("float32")


def linear(units: int, width: int = 4, **options: Any) -> Any:
    return keras.Sequential([keras.Input((width,)), L.Dense(units, name="linear", **options)])


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, "float32")


def wide(x: Any) -> Any:
    return tf.cast(x, tf.float32)


@dataclass(kw_only=True)
class Training:
    """A training of a few steps."""

    model: Any
    batches: Sequence[Any]
    """One a step; a tuple: the micro-batches of a step."""
    loss_of: Any
    optimizer: Any = None
    """SGD by default."""
    clip_norm: float | None = None
    guard: Mapping[str, Any] = field(default_factory=dict)
    precision: Mapping[str, Any] = field(default_factory=dict)
    """More of the policy."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A broken training."""

    name: str
    title: str
    row: int | None
    """Of the table of broken trainings."""
    make: Callable[[], Training]
    policies: tuple[str, ...]
    modes: tuple[str, ...]
    expected: Expected

    @property
    def file(self) -> str:
        """Where it stands."""
        return inspect.getfile(self.make)


BROKEN: dict[str, Case] = {}
HEALTHY: dict[str, tuple[Callable[[], Training], tuple[str, ...], tuple[str, ...]]] = {}

Make = Callable[[], Training]


def broken(
    title: str,
    *,
    row: int | None = None,
    policies: Sequence[str] = ("float32",),
    modes: Sequence[str] = MODES,
    **expected: Any,
) -> Callable[[Make], Make]:
    """Register a training that must be held and explained."""

    def register(make: Make) -> Make:
        name = make.__name__
        BROKEN[name] = Case(
            name=name,
            title=title,
            row=row,
            make=make,
            policies=tuple(policies),
            modes=tuple(modes),
            expected=Expected(**expected),
        )
        return make

    return register


def healthy(*policies: str, modes: Sequence[str] = MODES) -> Callable[[Make], Make]:
    """Register a training in which every step must be committed."""

    def register(make: Make) -> Make:
        HEALTHY[make.__name__] = (make, policies or ("float32",), tuple(modes))
        return make

    return register


@dataclass
class Course:
    """How a training went."""

    incident: Incident | None
    committed: int
    parameters: dict[str, bytes]
    """At the end, with buffers."""
    before: dict[str, bytes]
    """Before the step that was held."""
    finite: bool


def train(make: Make, policy: str, mode: str) -> Course:
    """Run a training to its end, or to its incident."""
    keras.utils.set_random_seed(0)
    training = make()
    model = training.model
    optimizer = training.optimizer or keras.optimizers.SGD(0.01)
    whole = PrecisionPolicy.preset(policy, guard=dict(training.guard), **dict(training.precision))
    incident, before = None, {}
    was_eager = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(mode == "eager")
    step: Any = None
    try:
        with transaction(
            model, optimizer, whole, clip_norm=training.clip_norm, jit_compile=mode == "jit"
        ) as step:
            for batch in training.batches:
                before = _state(model)
                step(training.loss_of, *(batch if isinstance(batch, tuple) else (batch,)))
    except NumericIncident as error:
        incident = error.incident
    finally:
        tf.config.run_functions_eagerly(was_eager)
    finite = all(np.isfinite(np.asarray(v, "float64")).all() for v in model.trainable_variables)
    return Course(incident, step.committed, _state(model), before, finite)


def _state(model: Any) -> dict[str, bytes]:
    return {v.path: v._value.numpy().tobytes() for v in model.variables}
