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
import keras_broken_steps
import keras_healthy_trainings
from expected_incident import assert_says
from keras_case_kit import BROKEN, HEALTHY, MODES, train
from keras_case_rows import ROWS

TESTS = Path(__file__).parent


def test_every_row_of_the_table_is_shown_by_trainings_or_a_test() -> None:
    assert list(ROWS) == list(range(1, 34))
    for number, row in ROWS.items():
        held = [case for case in BROKEN.values() if case.row == number]
        assert {case.name for case in held} == set(row.cases)
        assert bool(row.cases) != bool(row.test)
        if row.test:
            file, _, function = row.test.partition("::")
            assert f"def {function}(" in (TESTS / file).read_text(encoding="utf-8")
        else:
            modes = {"eager": "eager", "graph": "graph", "jit": "XLA"}
            assert {modes[m] for case in held for m in case.modes} == set(row.modes.split(", "))
            assert bool(row.why) == any(set(case.modes) != set(MODES) for case in held)
            said = {case.expected.code for case in held}
            assert said == {
                word for word in row.says.replace(":", " ").replace(",", " ").split() if word in said
            }


def test_metrics_count_in_float32_whatever_the_model_computes_in() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    enforce(model, {"preset": "bf16-true", "updates": {"master": "float32"}})
    model.compile("sgd", "mse", metrics=["mae"])
    model.fit(np.ones((400, 4)), np.ones((400, 1)), batch_size=1, verbose=0)
    assert {v.dtype for v in model.metrics_variables} == {"float32"}
    assert float(model.metrics_variables[-1]) == 400  # in bfloat16 it would stop at 256


assert keras_broken_functions.__doc__
assert keras_broken_layers.__doc__
assert keras_broken_steps.__doc__
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
