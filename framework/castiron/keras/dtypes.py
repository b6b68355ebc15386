"""Names of number formats and the TensorFlow dtypes they stand for."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from castiron.formats import FORMATS, number_format

NARROW: frozenset[str] = frozenset({"bfloat16", "float16"})
"""Formats of 16 bits: what mixed policies compute in, and what an island widens."""


def tensorflow_name(name: str) -> str:
    """TensorFlow's (and Keras's) name of a format that it can store; tf32 is stored as float32.

    Raises:
        ValueError: no such format, or TensorFlow has no dtype for it.
    """
    found = number_format(name).tensorflow_name
    if not found or not hasattr(tf.dtypes, found):
        raise ValueError(f"Expected a format that TensorFlow can store. Received {name!r}.")
    return found


def tensorflow_dtype(name: str) -> tf.DType:
    """The TensorFlow dtype of a format; tf32 is stored as float32.

    Raises:
        ValueError: no such format, or TensorFlow has no dtype for it.
    """
    return tf.as_dtype(tensorflow_name(name))


def dtype_name(dtype: Any) -> str:
    """castiron's name of a TensorFlow or NumPy dtype: `tf.bfloat16` is `bfloat16`."""
    return str(tf.as_dtype(dtype).name)


def is_float(dtype: Any) -> bool:
    """Whether a dtype, or one of this name, holds real numbers."""
    name = dtype if isinstance(dtype, str) else dtype_name(dtype)
    return name in FORMATS and FORMATS[name].is_float
