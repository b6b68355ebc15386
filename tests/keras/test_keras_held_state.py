"""A held step leaves everything bit for bit, whatever there is to leave: statistics, seeds, metrics,
counters, the optimizer's moments, accumulators and averages, masters, the loss scale. Training goes on as if
there had been none."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from castiron.keras import enforce
from castiron.keras.arguments import declared

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 16, 4)).astype("float32")
Y = X.sum(2, keepdims=True)
BAD = X[0].copy()
BAD[3, 1] = np.nan


class Counting(L.Layer):
    """Noise and a count that Keras does not know of."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = tf.Variable(0, trainable=False)
        self.draws = [tf.random.Generator.from_seed(7)]

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            self.calls.assign_add(1)
            x += tf.cast(self.draws[0].normal([4], stddev=0.01), x.dtype)
        return x


def trained(policy: Any, optimizer: Any, jit: bool, bad_before: tuple[int, ...]) -> tuple[Any, Any]:
    """A model trained on the good batches, with a bad one before some of them. → all that it holds, and the
    model."""
    keras.utils.set_random_seed(4)
    # Its forward pass writes into its own kernel. It computes in float32 in any case.
    spectral = L.SpectralNormalization(L.Dense(8)) if policy["preset"] == "float32" else L.Dense(8)
    model = keras.Sequential(
        [keras.Input((4,)), Counting(), spectral, L.BatchNormalization(), L.Dropout(0.2), L.Dense(1)]
    )  # fmt: skip
    enforce(model, policy)
    model.compile(optimizer(), loss="mse", metrics=["mae"], jit_compile=jit)
    for i in range(len(X)):
        if i in bad_before:
            before = held(model)
            step(model, BAD, Y[0])
            after = held(model)
            assert [n for n in before if before[n] != after[n]] == []
        step(model, X[i], Y[i])
    return held(model), model


def step(model: Any, x: Any, y: Any) -> None:
    """`train_on_batch`, which is to leave the metrics as they are."""
    if model.train_function is None:
        model.train_on_batch(x, y)
        return
    # Of an iterator of Python's each call would build a graph anew.
    batch = iter(tf.data.Dataset.from_tensors((x, y)))
    with declared(model.castiron.policy):
        model.train_function(batch)


def held(model: Any) -> dict[str, bytes]:
    core, counting = model.castiron.core, model.layers[0]
    own = [v._value for v in (*model.variables, *model.metrics_variables)]
    states = [*core.updates.variables(), *core.scaler.variables(), *core.snapshot.variables]
    named = {f"{i} {v.name}": v for i, v in enumerate([*own, *states])}
    named |= {"calls": counting.calls, "draws": counting.draws[0].state}
    return {n: v.numpy().tobytes() for n, v in named.items()}


def accumulating() -> Any:
    return keras.optimizers.AdamW(
        0.01, gradient_accumulation_steps=2, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=2,
        clipnorm=1.0,
    )  # fmt: skip


HOLD = {"guard": {"response": "hold", "budget": {"holds": 100}}}
POLICIES: dict[str, dict[str, Any]] = {
    "float32": {"preset": "float32"},
    "scaled": {"preset": "fp16-mixed", "scaling": {"kind": "dynamic", "initial": 1024.0, "interval": 4}},
    "masters": {"preset": "bf16-true", "updates": {"master": "float32"}},
}


@pytest.mark.parametrize(("policy", "jit"), [("float32", False), ("scaled", False), ("masters", True)])
def test_training_goes_on_as_if_there_had_been_no_bad_step(policy: str, jit: bool) -> None:
    # 1 and 3 are in the middle of an accumulated step, 2 at its beginning.
    whole = HOLD | POLICIES[policy]
    found, model = trained(whole, accumulating, jit, (1, 2, 3))
    expected, _ = trained(whole, accumulating, jit, ())
    assert (model.castiron.held, model.castiron.committed) == (3, 6)
    assert int(model.optimizer.iterations) == 3
    assert int(model.layers[0].calls) == 6
    pairs = zip(found.items(), expected.values(), strict=True)
    assert [name for (name, value), other in pairs if value != other] == []
