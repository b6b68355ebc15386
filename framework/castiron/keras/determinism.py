"""The same run twice: seeds, deterministic kernels, threads; each put back afterwards where it can be."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.framework import config

from castiron.diagnostics import Finding, Place, finding


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's, TensorFlow's and Keras's generators.

    Args:
        seed: 0 to 2**32 - 1 (NumPy's range).

    Raises:
        ValueError: the seed is out of range.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"Expected a seed from 0 to 4294967295. Received {seed}.")
    keras.utils.set_random_seed(seed)


@contextlib.contextmanager
def isolated_rng() -> Iterator[None]:
    """Within it, random numbers may be drawn and seeds set; afterwards the generators are as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    ctx: Any = context.context()
    kept: dict[str, Any] = {name: getattr(ctx, name, None) for name in ("_seed", "_rng")}
    drawn = kept["_rng"].getstate() if kept["_rng"] is not None else None
    seed = keras.src.backend.common.global_state.get_global_attribute("global_seed_generator")
    value = None if seed is None else seed.state.numpy()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if drawn is not None:
            kept["_rng"].setstate(drawn)
        for name, was in kept.items():
            if was is not None:
                setattr(ctx, name, was)
        if seed is not None:
            seed.state.assign(value)


@contextlib.contextmanager
def deterministic_operations(enabled: bool = True) -> Iterator[None]:
    """Within it, operations use their deterministic kernels, and those that have none raise."""
    before = operations_are_deterministic()
    _enable(enabled)
    try:
        yield
    finally:
        _enable(before)


def operations_are_deterministic() -> bool:
    """Whether operations use their deterministic kernels."""
    return bool(config.is_op_determinism_enabled())


def _enable(enabled: bool) -> None:
    if enabled == operations_are_deterministic():
        return
    (config.enable_op_determinism if enabled else config.disable_op_determinism)()


def set_threads(count: int | None) -> Finding | None:
    """Let TensorFlow compute on so many threads. Possible only before its first operation; a warning (X815)
    where it is too late. None leaves it as it is."""
    if count is None:
        return None
    try:
        tf.config.threading.set_intra_op_parallelism_threads(count)
        tf.config.threading.set_inter_op_parallelism_threads(1 if count == 1 else 2)
    except RuntimeError:
        if tf.config.threading.get_intra_op_parallelism_threads() == count:
            return None
        now = tf.config.threading.get_intra_op_parallelism_threads() or "as many as there are cores"
        return finding(
            "X815",
            "TensorFlow has started already, and keeps the number of threads it started with.",
            place=Place(key="trainer.threads"),
            severity="warning",
            expected=f"{count} threads",
            received=f"{now}",
            remedy="Set it for a process of its own: castiron train.",
        )
    return None
