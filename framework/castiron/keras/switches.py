"""The process-wide switches of matrix products: set explicitly, both ways, and put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from castiron.keras.determinism import operations_are_deterministic
from castiron.policy.sections import MatmulSection


@contextlib.contextmanager
def matmul_switches(section: MatmulSection) -> Iterator[dict[str, Any]]:
    """Within it, tf32 is on or off as the policy declares; afterwards, also after an error, as it was.

    TensorFlow has it on by default on GPUs that have it. Reduced-precision reductions have no switch there:
    cuBLAS sums bfloat16 and float16 products in float32. Yields the `snapshot` of what was set.
    """
    before = bool(tf.config.experimental.tensor_float_32_execution_enabled())
    try:
        set_switches(section)
        yield snapshot()
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


def set_switches(section: MatmulSection) -> None:
    """Set the switches for the rest of the process."""
    tf.config.experimental.enable_tensor_float_32_execution(section.tf32)


def snapshot() -> dict[str, Any]:
    """What is set now, JSON-ready."""
    return {
        "tf32": bool(tf.config.experimental.tensor_float_32_execution_enabled()),
        "deterministic_operations": operations_are_deterministic(),
        "floatx": keras.config.floatx(),
        "global_policy": keras.config.dtype_policy().name,
        "denormals_flushed": denormals_flushed(),
    }


def denormals_flushed() -> bool:
    """Whether TensorFlow's CPU kernels turn subnormal numbers into zero (it cannot be asked)."""
    smallest_normal = tf.constant([1.1754943508222875e-38], tf.float32)
    with tf.device("/CPU:0"):
        return bool((tf.multiply(smallest_normal, 0.5) == 0).numpy())
