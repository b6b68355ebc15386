"""Every broken training is held, and its producer named; every healthy one goes through: eagerly, as a graph,
and compiled by XLA."""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from castiron.keras import enforce

sys.path.insert(0, str(Path(__file__).parents[1] / "cases"))
sys.path.insert(0, str(Path(__file__).parent))

import keras_broken_functions
import keras_broken_layers
import keras_healthy_trainings
from expected_incident import assert_says
from keras_case_kit import BROKEN, HEALTHY, train

TESTS = Path(__file__).parent
HERE = "test_keras_cases"
ELSEWHERE: dict[int, tuple[str, str]] = {
    6: ("keras_healthy_trainings", "attention_with_a_row_masked_whole"),
    15: ("keras_healthy_trainings", "zero_gradients_and_adam_on_float16_parameters"),
    16: ("test_keras_precision", "test_narrow_parameters_without_master_are_warned_of"),
    17: ("test_keras_updates", "test_a_master_copy_keeps_updates_smaller_than_the_spacing"),
    23: ("test_keras_transaction", "test_a_scale_at_its_floor_ends_training_by_name_and_never_reaches_zero"),
    24: ("keras_healthy_trainings", "gradients_overflow_while_the_loss_scale_calibrates"),
    25: ("test_keras_inputs", "test_features_and_targets_are_cast_by_role_and_integers_stay"),
    27: ("test_keras_enforce", "test_a_second_optimizer_is_taken_back_too_once_it_is_built"),
    28: (HERE, "test_metrics_count_in_float32_whatever_the_model_computes_in"),
    29: ("test_keras_enforce", "test_replicas_decide_as_one"),
    31: ("keras_broken_functions", "root_of_zero_times_zero"),
    32: ("test_keras_precision", "test_float8_is_refused_by_name"),
}
"""Rows of the table of broken trainings that end otherwise than in an incident → file, and function."""
NOT_HELD = {
    14: "Gradients that vanish are finite: the guard sees nothing; the share that underflows is health's.",
    19: "Squares that vanish are finite: the guard sees nothing; it is health's.",
    30: "Cancellation is finite but wrong: no check of values can see it.",
}


def test_every_row_of_the_table_is_here_or_has_a_reason() -> None:
    held = {case.row for case in BROKEN.values() if case.row is not None}
    assert held | set(ELSEWHERE) | set(NOT_HELD) == set(range(1, 34))
    for file, function in ELSEWHERE.values():
        assert f"def {function}(" in (TESTS / f"{file}.py").read_text(encoding="utf-8")


def test_metrics_count_in_float32_whatever_the_model_computes_in() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    enforce(model, {"preset": "bf16-true", "updates": {"master": "float32"}})
    model.compile("sgd", "mse", metrics=["mae"])
    model.fit(np.ones((400, 4)), np.ones((400, 1)), batch_size=1, verbose=0)
    assert {v.dtype for v in model.metrics_variables} == {"float32"}
    assert float(model.metrics_variables[-1]) == 400  # in bfloat16 it would stop at 256


assert keras_broken_functions.__doc__
assert keras_broken_layers.__doc__
assert keras_healthy_trainings.__doc__


@pytest.mark.parametrize(
    ("name", "policy", "mode"), [(c.name, p, m) for c in BROKEN.values() for p in c.policies for m in c.modes]
)
def test_a_broken_training_is_held_and_explained(name: str, policy: str, mode: str) -> None:
    case = BROKEN[name]
    course = train(case.make, policy, mode)
    assert_says(course.incident, case.expected, case.file)
    assert course.parameters == course.before


@pytest.mark.parametrize(
    ("name", "policy", "mode"), [(n, p, m) for n, (_, ps, ms) in HEALTHY.items() for p in ps for m in ms]
)
def test_a_healthy_training_is_left_in_peace(name: str, policy: str, mode: str) -> None:
    make, _, _ = HEALTHY[name]
    course = train(make, policy, mode)
    assert course.incident is None, course.incident and course.incident.message
    assert course.committed > 0
    assert course.finite
