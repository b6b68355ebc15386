"""Every broken training is held, and its producer named; every healthy one goes through."""

from __future__ import annotations

import broken_functions
import broken_layers
import broken_steps
import healthy_trainings
import pytest
import silent_trainings
import torch
from case_kit import BROKEN, HEALTHY, SILENT, find, train
from expected_incident import assert_says

assert broken_functions.__doc__
assert broken_layers.__doc__
assert broken_steps.__doc__
assert healthy_trainings.__doc__
assert silent_trainings.__doc__


@pytest.mark.parametrize(("name", "policy"), [(c.name, p) for c in BROKEN.values() for p in c.policies])
def test_a_broken_training_is_held_and_explained(name: str, policy: str) -> None:
    case = BROKEN[name]
    course = train(case.make, policy)
    assert_says(course.incident, case.expected, case.file)
    for key, value in course.parameters.items():
        assert torch.equal(value.view(torch.uint8), course.before[key].view(torch.uint8)), (
            f"{key} was changed"
        )


@pytest.mark.parametrize(("name", "policy"), [(n, p) for n, (_, ps) in HEALTHY.items() for p in ps])
def test_a_healthy_training_is_left_in_peace(name: str, policy: str) -> None:
    make, _ = HEALTHY[name]
    course = train(make, policy)
    assert course.incident is None, course.incident and course.incident.message
    assert course.committed > 0
    assert all(p.isfinite().all() for p in course.parameters.values())


@pytest.mark.parametrize(("name", "policy"), [(c.name, p) for c in SILENT.values() for p in c.policies])
def test_a_silent_fault_is_told(name: str, policy: str) -> None:
    case = SILENT[name]
    found, committed = find(case, policy)
    told = [f for f in found if f.code == case.code]
    assert told, [str(f) for f in found]
    assert {f.code for f in found if f.severity != "info"} == {case.code}
    assert case.says is None or case.says in str(told[0]), str(told[0])
    assert case.module is None or told[0].place.module == case.module
    if case.code.startswith("N"):
        assert committed == len(case.make().batches), "a silent fault holds no step"
