"""TensorFlow's table of gradients after a training."""

from __future__ import annotations

import gc
from pathlib import Path

import tensorflow as tf
from tensorflow.python.framework import ops

from castiron.keras.registry import gradients_forgotten
from castiron.training.config_file import load_config
from castiron.training.launch import train


def test_a_training_leaves_no_graph_behind(tmp_path: Path) -> None:
    """tabular has SiLU, whose gradient TensorFlow defines for each graph anew; health is measured."""
    gc.collect()
    before = _graphs()
    config = load_config(
        "tabular", ["backend=tensorflow", "model.hidden=[8]", "trainer.max_steps=2", "health.every=1"]
    )
    train(config, runs=tmp_path, name="run")
    gc.collect()
    assert _graphs() <= before


def test_what_was_there_before_stays() -> None:
    @tf.function
    def slope(x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.nn.silu(x)
        return tape.gradient(y, x)

    before = set(ops.gradient_registry.list())
    slope(tf.constant(1.0))
    own = set(ops.gradient_registry.list())
    assert own > before, "TensorFlow still enters them"
    with gradients_forgotten():
        assert float(slope(tf.constant([1.0, 2.0]))[0]) > 0
        assert set(ops.gradient_registry.list()) > own
    assert set(ops.gradient_registry.list()) == own
    assert float(slope(tf.constant([3.0, 4.0]))[0]) > 0


def _graphs() -> int:
    return sum(type(o).__name__ == "FuncGraph" for o in gc.get_objects())
