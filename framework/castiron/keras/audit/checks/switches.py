"""F322: the process's switch for tf32, where a device has it."""

from __future__ import annotations

from collections.abc import Iterator

import tensorflow as tf

from castiron.diagnostics import Finding, Place, finding
from castiron.policy import PrecisionPolicy


def device() -> str:
    """What TensorFlow computes on: cuda or cpu."""
    return "cuda" if tf.config.list_logical_devices("GPU") else "cpu"


def check(policy: PrecisionPolicy) -> Iterator[Finding]:
    """TensorFlow has it on unless it is told otherwise; only a GPU heeds it."""
    on = bool(tf.config.experimental.tensor_float_32_execution_enabled())
    if device() != "cuda" or policy.matmul.tf32 or not on:
        return
    name = "tf.config.experimental.enable_tensor_float_32_execution"
    yield finding(
        "F322",
        "TensorFlow's switch for tf32 is on",
        place=Place(op=name),
        expected="off",
        received="on",
        remedy=f"{name}(False), or let castiron.keras.enforce set it.",
    )
