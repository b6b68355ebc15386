"""How updates reach narrow parameters, and what the optimizer keeps."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from castiron.keras.modules import stored_dtype
from castiron.keras.optimizers import build_optimizer, coupled_decay
from castiron.keras.updates import Updates, stochastic_round
from castiron.policy import PrecisionPolicy
from castiron.training.config import OptimizerConfig


def weight(value: Any, dtype: str) -> Any:
    return keras.Variable(np.asarray(value, "float32"), dtype=dtype, name="w")


def steps(policy: PrecisionPolicy, optimizer: Any, count: int, gradient: float = 1.0, seed: int = 0) -> Any:
    w = weight(np.ones(512), policy.param)
    updates = Updates(optimizer, [w], policy, seed=seed)
    step = tf.function(lambda: updates.apply([tf.fill([512], tf.cast(gradient, w._value.dtype))]))
    for _ in range(count):
        step()
    return w.numpy().astype("float64"), updates


def test_adam_learns_in_bfloat16_where_keras_alone_does_not() -> None:
    alone = weight(np.ones(4), "bfloat16")
    own = keras.optimizers.Adam(1e-2)
    own.apply([tf.ones(4, tf.bfloat16)], [alone])
    assert (alone.numpy().astype("f") == 1).all()  # beta_2 is 1 in bfloat16
    policy = PrecisionPolicy.preset("bf16-true", updates={"master": None})
    moved, _ = steps(policy, build_optimizer(OptimizerConfig(name="adam", lr=1e-2)), 3)
    assert (moved < 0.98).all()


def test_a_master_copy_keeps_updates_smaller_than_the_spacing() -> None:
    config = OptimizerConfig(name="sgd", lr=1e-3)
    lost = PrecisionPolicy.preset("bf16-true", updates={"master": None})
    kept = PrecisionPolicy.preset("bf16-true", updates={"master": "float32"})
    assert (steps(lost, build_optimizer(config), 100)[0] == 1).all()
    assert steps(kept, build_optimizer(config), 100)[0] == pytest.approx(0.9, abs=0.002)


def test_stochastic_rounding_is_right_on_average_and_the_same_again() -> None:
    policy = PrecisionPolicy.preset("bf16-true", updates={"master": None, "rounding": "stochastic"})
    config = OptimizerConfig(name="sgd", lr=1e-3)
    first, _ = steps(policy, build_optimizer(config), 100, seed=3)
    again, _ = steps(policy, build_optimizer(config), 100, seed=3)
    assert first.mean() == pytest.approx(0.9, abs=0.004)
    assert np.array_equal(first, again)
    assert np.isnan(stochastic_round(tf.constant([np.nan]), tf.constant([0, 0], tf.int64)).numpy()[0])


@pytest.mark.parametrize("state", ["float32", "bfloat16", "float64"])
def test_the_optimizer_keeps_its_state_as_declared(state: str) -> None:
    policy = PrecisionPolicy.preset("float32", state=state)
    _, updates = steps(policy, build_optimizer(OptimizerConfig(name="adamw")), 2)
    kept = {v.name: stored_dtype(v) for v in updates.optimizer.variables}
    assert {d for n, d in kept.items() if "momentum" in n or "velocity" in n} == {state}
    assert kept["learning_rate"] == "float32"


torch = pytest.importorskip("torch")


@pytest.mark.parametrize(
    "config",
    [
        OptimizerConfig(name="adamw", lr=1e-2, weight_decay=0.1),
        OptimizerConfig(name="adam", lr=1e-2, weight_decay=0.1, eps=1e-4),
        OptimizerConfig(name="sgd", lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
        OptimizerConfig(name="rmsprop", lr=1e-2, momentum=0.5),
        OptimizerConfig(name="adagrad", lr=1e-2),
    ],
    ids=lambda c: c.name,
)
def test_an_optimizer_of_a_config_makes_the_same_steps_in_both_wings(config: OptimizerConfig) -> None:
    from castiron.torch.optimizers import build_optimizer as build_torch

    start = np.linspace(-1, 1, 7).astype("float32")
    theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
    torch_optimizer = build_torch([theirs], config)
    ours = weight(start, "float32")
    updates, decay = (
        Updates(build_optimizer(config), [ours], PrecisionPolicy.preset("float32")),
        coupled_decay(config),
    )
    for i in range(20):
        gradient = np.cos(start * (i + 1)).astype("float32")
        theirs.grad = torch.from_numpy(gradient.copy())
        torch_optimizer.step()
        given = tf.constant(gradient)
        updates.apply([given if decay is None else decay(given, ours)])
    np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=2e-6, atol=2e-7)
