"""Loss scaling within bounds, in the graph."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from castiron.diagnostics import ConfigError
from castiron.keras.scaling import make_scaler
from castiron.policy.sections import DynamicScaling, NoScaling, StaticScaling


def run(scaler, verdicts):
    step = tf.function(lambda bad: scaler.update(bad))
    for bad in verdicts:
        step(tf.constant(bad))


def test_the_scale_never_falls_below_its_floor_and_says_so_after_patience() -> None:
    scaler = make_scaler(DynamicScaling(initial=4, min=1, patience=3))
    run(scaler, [True] * 160)  # Keras's own stands at 0.0 after these
    assert scaler.get_scale() == 1.0
    found = scaler.check()
    assert found is not None
    assert found.code == "S401"
    assert found.received == "158; no step was taken since"


def test_the_scale_grows_after_the_interval_and_stays_below_its_ceiling() -> None:
    scaler = make_scaler(DynamicScaling(initial=4, max=8, interval=2))
    run(scaler, [False, False])
    assert scaler.get_scale() == 8.0
    run(scaler, [False] * 10)
    assert scaler.get_scale() == 8.0


def test_an_overflow_while_calibrating_is_information() -> None:
    scaler = make_scaler(DynamicScaling(initial=4))
    run(scaler, [True, False])
    found = scaler.check()
    assert found is not None
    assert (found.code, found.severity) == ("S403", "info")
    assert str(found.message) == "gradients overflowed once, and the loss scale backed off to 2"
    assert scaler.check() is None


def test_scaling_and_unscaling_changes_no_bit() -> None:
    scaler = make_scaler(StaticScaling(scale=4096.0))
    loss = tf.constant(0.1)
    (back,) = scaler.unscale([scaler.scale(loss)])
    assert back.numpy() == loss.numpy()
    assert scaler.unscale([None]) == [None]


def test_the_state_comes_back_and_another_kind_is_refused() -> None:
    scaler = make_scaler(DynamicScaling(initial=4, interval=3))
    run(scaler, [True, False, False])
    other = make_scaler(DynamicScaling(initial=4, interval=3))
    other.load_state_dict(scaler.state_dict())
    run(other, [False])
    assert other.get_scale() == 4.0
    with pytest.raises(ConfigError, match=r"S404.*Expected scaling none. Received scaling dynamic"):
        make_scaler(NoScaling()).load_state_dict(scaler.state_dict())


def test_a_scale_that_cannot_be_inverted_is_refused() -> None:
    with pytest.raises(ConfigError, match="S402 the loss scale"):
        make_scaler(StaticScaling(scale=1e-40))
    assert np.isfinite(make_scaler(NoScaling()).get_scale())
