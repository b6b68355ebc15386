"""Every broken training is held, and its producer named; every healthy one goes through."""

from __future__ import annotations

import broken_trainings
import healthy_trainings
import pytest
import silent_trainings
import torch
from case_kit import BROKEN, HEALTHY, SILENT, find, train

assert broken_trainings.__doc__
assert healthy_trainings.__doc__
assert silent_trainings.__doc__


@pytest.mark.parametrize(("name", "policy"), [(c.name, p) for c in BROKEN.values() for p in c.policies])
def test_a_broken_training_is_held_and_explained(name: str, policy: str) -> None:
    case = BROKEN[name]
    course = train(case.make, policy)
    incident, expected = course.incident, case.expected
    assert incident is not None, "no step was held"
    said = f"{incident.model_dump_json(indent=1)}"
    for what in ("code", "phase", "event"):
        assert getattr(incident, what) == getattr(expected, what), said
    producer = incident.producer
    if expected.op is not None:
        assert producer.op in ([expected.op] if isinstance(expected.op, str) else expected.op), said
    for what in ("module", "parameter", "time_index"):
        if getattr(expected, what) is not None:
            assert getattr(producer, what) == getattr(expected, what), said
    if expected.line is not None:
        assert producer.source is not None, said
        assert expected.line in producer.source.text, said
        assert producer.source.file == broken_trainings.__file__
    if expected.rows is not None:
        assert [r.index for r in incident.rows] == list(expected.rows), said
    if expected.micro_batch is not None:
        assert incident.micro_batch == expected.micro_batch, said
    if expected.says is not None:
        assert expected.says in f"{incident.message} {incident.remedy}", said
    assert incident.remedy
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
