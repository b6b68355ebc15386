"""What Keras's own methods are called with, cast by what it is for; and the process's switches meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from castiron.keras.inputs import cast_inputs
from castiron.keras.switches import matmul_switches
from castiron.policy import PrecisionPolicy

_ROLES = {"x": "feature", "y": "target", "sample_weight": "weight"}


@contextlib.contextmanager
def declared(policy: PrecisionPolicy) -> Iterator[None]:
    """Within it, process-wide switches are as declared. Keras casts data and losses to floatx: where float64
    is declared, that is float64 meanwhile."""
    floatx = keras.config.floatx()
    with matmul_switches(policy.matmul):
        keras.config.set_floatx("float64" if "float64" in (policy.param, policy.loss) else "float32")
        try:
            yield
        finally:
            keras.config.set_floatx(floatx)


def cast_argument(policy: PrecisionPolicy, given: Any, name: str) -> Any:
    """An argument of `fit` and the like; one that gives batches is cast where they come from it.

    Args:
        name: x, y or sample_weight.

    Raises:
        DataError: see `cast_inputs`.
    """
    if isinstance(given, tf.data.Dataset):
        return given.map(lambda *batch: cast_data(policy, batch if len(batch) > 1 else batch[0]))
    if given is None or isinstance(given, keras.utils.PyDataset) or hasattr(given, "__next__"):
        return given
    return cast_inputs({name: given}, policy, role=_ROLES[name])[name]


def cast_call(
    policy: PrecisionPolicy, args: Sequence[Any], kwargs: Mapping[str, Any], *, targets: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of one of a model's own methods: x, and y where there are targets, by position.

    Raises:
        DataError: see `cast_inputs`.
    """
    x, *more = args
    if more and targets:
        more[0] = cast_argument(policy, more[0], "y")
    given = dict(kwargs)
    if given.get("sample_weight") is not None:
        given["sample_weight"] = cast_argument(policy, given["sample_weight"], "sample_weight")
    return (cast_argument(policy, x, "x"), *more), given


def cast_data(policy: PrecisionPolicy, data: Any) -> Any:
    """(x, y, sample_weight), or what of these there is."""
    if isinstance(data, tuple):
        return tuple(cast_argument(policy, part, name) for part, name in zip(data, _ROLES, strict=False))
    return cast_argument(policy, data, "x")


def without_optionals(data: Any) -> Any:
    """A batch without weights has an empty `Optional` in their place."""
    return keras.tree.map_structure(lambda t: None if isinstance(t, tf.experimental.Optional) else t, data)


def as_tensor(leaf: Any) -> Any:
    """An array as a tensor; anything else as it is."""
    return tf.convert_to_tensor(leaf) if isinstance(leaf, np.ndarray) else leaf
