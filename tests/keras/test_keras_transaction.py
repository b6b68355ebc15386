"""Steps that are applied whole or not at all, compiled."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from castiron.diagnostics import ConfigError, NumericIncident, PlanError
from castiron.keras.snapshot import volatile_variables
from castiron.keras.transaction import Transaction, transaction

L = keras.layers
HOLD = {"preset": "float32", "guard": {"response": "hold", "budget": {"holds": 100}}}
RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 4)).astype("float32")
Y = X.sum(1, keepdims=True)
BAD = X.copy()
BAD[3, 1] = np.nan


def network() -> Any:
    return keras.Sequential(
        [
            keras.Input((4,)),
            L.Dense(6, name="hidden"),
            L.BatchNormalization(name="norm"),
            L.Dropout(0.2, name="drop"),
            L.Dense(1, name="head"),
        ]
    )


def mse(model: Any) -> Any:
    def loss_of(batch: Any) -> Any:
        return tf.reduce_mean(tf.square(tf.cast(model(batch["x"], training=True), tf.float32) - batch["y"]))

    return loss_of


def state(model: Any, step: Transaction) -> list[bytes]:
    variables = [
        *(v._value for v in model.variables),
        *volatile_variables(model),
        *step.core.updates.variables(),
    ]
    return [v.numpy().tobytes() for v in variables]


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("preset", ["float32", "bf16-mixed", "bf16-true"])
def test_a_held_step_leaves_every_variable_bit_for_bit(preset: str, jit: bool) -> None:
    model = network()
    policy = {"preset": preset, "guard": HOLD["guard"]}
    with transaction(model, keras.optimizers.Adam(0.01), policy, clip_norm=1.0, jit_compile=jit) as step:
        loss_of = mse(model)
        assert step(loss_of, {"x": X, "y": Y}).committed
        before = state(model, step)
        outcome = step(loss_of, {"x": BAD, "y": Y})
        assert not outcome.committed
        assert state(model, step) == before
        assert outcome.verdict.seen["buffers"] == ("norm.moving_mean", "norm.moving_variance")
        assert step(loss_of, {"x": X, "y": Y}).committed
        assert state(model, step) != before
        assert (step.committed, step.held) == (2, 1)


def test_it_raises_with_the_incident_by_default() -> None:
    model = network()
    with transaction(model, keras.optimizers.SGD(0.1)) as step, pytest.raises(NumericIncident) as e:
        step(mse(model), {"x": BAD, "y": Y})
    assert str(e.value).startswith(
        "N507 Field 'x' of the batch is not finite in row 3 of 8: the step after 0 committed ones is not "
        "finite, and was not applied; because of row 3 of the batch."
    )
    assert e.value.incident.rows[0].index == 3


def test_rows_are_named_by_file_and_line() -> None:
    model = network()
    policy = "float32"
    with (
        transaction(model, keras.optimizers.SGD(0.1), policy, origin=lambda r: f"data.csv:{r + 2}") as step,
        pytest.raises(NumericIncident, match=r"because of data.csv:105\."),
    ):
        step(mse(model), {"x": BAD, "y": Y, "row": np.arange(100, 108)})


def test_accumulated_gradients_are_their_mean_and_the_bad_micro_batch_is_named() -> None:
    whole, parts = network(), network()
    parts.set_weights(whole.get_weights())
    for model in (whole, parts):
        model.get_layer("drop").rate = 0.0
    with transaction(whole, keras.optimizers.SGD(0.1), HOLD) as step:
        loss = mse_without_norm(whole)
        first = step(loss, {"x": X, "y": Y})
    with transaction(parts, keras.optimizers.SGD(0.1), HOLD) as step:
        loss = mse_without_norm(parts)
        second = step(loss, {"x": X[:4], "y": Y[:4]}, {"x": X[4:], "y": Y[4:]})
        assert second.loss.numpy() == pytest.approx(first.loss.numpy(), rel=1e-6)
        for a, b in zip(whole.get_weights(), parts.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        bad = step(loss, {"x": X[:4], "y": Y[:4]}, {"x": BAD[:4], "y": Y[:4]})
        assert bad.verdict.micro_batches == (1,)
        assert step.incidents[0].micro_batch == 1


def repeat(times: int, step: Transaction, loss_of: Any) -> None:
    for _ in range(times):
        step(loss_of, {"x": X, "y": Y})


def mse_without_norm(model: Any) -> Any:
    def loss_of(batch: Any) -> Any:
        return tf.reduce_mean(tf.square(model(batch["x"], training=False) - batch["y"]))

    return loss_of


def test_an_overflow_while_the_scale_calibrates_is_expected_and_quiet() -> None:
    model = keras.Sequential([keras.Input((4,)), L.Dense(1, name="head")])
    policy = {"preset": "fp16-mixed", "scaling": {"kind": "dynamic", "initial": 2.0**24}}
    with transaction(model, keras.optimizers.SGD(1e-3), policy) as step:
        loss_of = mse(model)
        skipped = [step(loss_of, {"x": X, "y": Y}).skipped for _ in range(14)]
    assert skipped[0] == "gradients overflowed; the loss scale is now 8.38861e+06"
    assert skipped[-1] is None
    assert step.overflows == sum(s is not None for s in skipped)
    assert step.held == 0


def test_a_scale_at_its_floor_ends_training_by_name_and_never_reaches_zero() -> None:
    model = keras.Sequential([keras.Input((4,)), L.Dense(1, name="head")])
    policy = {
        "preset": "fp16-mixed",
        "scaling": {"kind": "dynamic", "initial": 4, "min": 1, "patience": 3},
        "guard": {"response": "hold"},
    }
    with transaction(model, keras.optimizers.SGD(1e-3), policy) as step:

        def loss_of(batch: Any) -> Any:
            return tf.reduce_mean(tf.cast(model(batch["x"]), tf.float32)) * 1e38

        with pytest.raises(NumericIncident, match="S401 the loss scale stands at its floor of 1"):
            repeat(10, step, loss_of)
        assert step.scaler.get_scale() == 1.0
        assert np.isfinite(model.get_weights()[0]).all()


def test_finite_gradients_beyond_the_square_root_of_the_range_are_no_incident() -> None:
    model = keras.Sequential([keras.Input((4,)), L.Dense(1, use_bias=False, name="head")])
    with transaction(model, keras.optimizers.SGD(1e-30), "float32", clip_norm=1.0) as step:
        assert step(lambda b: tf.reduce_mean(model(b["x"])) * 1e30, {"x": X}).committed


def test_what_the_optimizer_spoils_is_undone_where_it_is_watched() -> None:
    model = keras.Sequential([keras.Input((4,)), L.Dense(1, use_bias=False, name="head")])
    policy = {"preset": "float32", "guard": {"response": "hold", "watch": ["loss", "gradients", "optimizer"]}}
    with transaction(model, keras.optimizers.Adam(0.1), policy) as step:
        before = state(model, step)
        outcome = step(lambda b: tf.reduce_mean(model(b["x"])) * 1e30, {"x": X})
        assert not outcome.committed
        assert state(model, step) == before
        assert outcome.finding is not None
        assert outcome.finding.code == "N508"
        assert set(outcome.verdict.seen) == {"optimizer"}


def test_guard_every_looks_at_every_second_step_only() -> None:
    model = keras.Sequential([keras.Input((4,)), L.Dense(1, name="head")])
    policy = {"preset": "float32", "guard": {"response": "hold", "every": 2}}
    with transaction(model, keras.optimizers.SGD(0.1), policy) as step:
        loss_of = mse(model)
        assert step(loss_of, {"x": X, "y": Y}).committed
        assert step(loss_of, {"x": BAD, "y": Y}).committed
        assert not step(loss_of, {"x": X, "y": Y}).committed


def test_the_budget_of_held_steps_ends_it() -> None:
    model = network()
    policy = {"preset": "float32", "guard": {"response": "hold", "budget": {"holds": 1}}}
    with transaction(model, keras.optimizers.SGD(0.1), policy) as step:
        loss_of = mse(model)
        step(loss_of, {"x": BAD, "y": Y})
        with pytest.raises(NumericIncident, match="N510"):
            step(loss_of, {"x": BAD, "y": Y})


@pytest.mark.parametrize(
    ("guard", "words"),
    [
        ({"response": "rollback"}, "X815 A bare loop does not do that. Expected raise, hold"),
        ({"watch": ["loss", "activations"]}, "X815 The TensorFlow wing does not watch that. Expected loss"),
    ],
)
def test_what_it_does_not_do_is_refused(guard: Any, words: str) -> None:
    with (
        pytest.raises(ConfigError, match=words),
        transaction(network(), keras.optimizers.SGD(0.1), {"preset": "float32", "guard": guard}),
    ):
        pass


def test_a_loss_in_another_format_is_refused() -> None:
    model = network()
    with (
        transaction(model, keras.optimizers.SGD(0.1), "bf16-mixed") as step,
        pytest.raises(PlanError, match=r"F310 the loss is not in the declared format. Expected float32"),
    ):
        step(lambda b: tf.reduce_mean(model(b["x"])), {"x": X})


def test_an_incident_is_stored_whole(tmp_path: Any) -> None:
    from castiron.training.incident_folder import IncidentFolder

    model = network()
    with transaction(model, keras.optimizers.Adam(0.1), HOLD, incidents=tmp_path) as step:
        step(mse(model), {"x": BAD, "y": Y})
        folder = IncidentFolder.open(tmp_path / "step-0")
        assert folder.incident == step.incidents[0]
        from castiron.keras.incidents import StoredStep

        stored = StoredStep(folder)
        (batch,) = stored.batches()
        np.testing.assert_array_equal(batch["x"].numpy(), BAD)
        stored.put(step.core)
    assert stored.verdict.seen["loss"] == ("micro-batch 0",)


def test_a_recurrent_state_is_held_too() -> None:
    model = keras.Sequential(
        [keras.Input(batch_shape=(2, 3, 4)), L.LSTM(5, stateful=True, name="lstm"), L.Dense(1)]
    )
    x = np.ones((2, 3, 4), "float32")
    with transaction(model, keras.optimizers.SGD(0.1), HOLD) as step:
        loss_of = lambda b: tf.reduce_mean(model(b["x"], training=True))  # noqa: E731
        step(loss_of, {"x": x})
        before = state(model, step)
        x[1, 2, 0] = np.inf
        assert not step(loss_of, {"x": x}).committed
        assert state(model, step) == before


def test_an_incident_that_cannot_be_stored_is_told_and_ends_nothing(tmp_path: Any) -> None:
    (tmp_path / "a file").write_text("")
    model = network()
    with transaction(model, keras.optimizers.Adam(0.1), HOLD, incidents=tmp_path / "a file") as step:
        told = step(mse(model), {"x": BAD, "y": Y}).finding
        assert step(mse(model), {"x": X, "y": Y}).committed
    assert "The incident is not stored: A file stands where a folder is to be made." in str(told)
