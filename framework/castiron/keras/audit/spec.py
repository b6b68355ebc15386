"""Example inputs for TensorFlow from a line of text (`training.example_specs`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from castiron.keras.dtypes import tensorflow_dtype
from castiron.training.example_specs import read_specs


def example(specs: Sequence[str]) -> Any:
    """A batch of tensors of these formats and shapes: one, a tuple, or a mapping where all have names.

    Floats are drawn from a normal distribution, integers are below the number after `<` (2 by default).

    Raises:
        ConfigError: a spec cannot be read (X820).
    """
    return read_specs(specs, _tensor)


def _tensor(name: str, shape: list[int], below: int) -> Any:
    dtype = tensorflow_dtype(name)
    random = np.random.default_rng(0)
    if dtype.is_floating:
        return tf.cast(random.normal(size=shape), dtype)
    return tf.cast(random.integers(below, size=shape), dtype)
