"""The guard's section: what follows a bad step, and how often."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from castiron.policy import GuardSection, PrecisionPolicy


def test_defaults() -> None:
    section = GuardSection()
    assert (section.response, section.budget.holds, section.budget.window) == ("raise", 10, 1000)
    assert (section.rollback.steps, section.rollback.limit) == (100, 3)
    assert (section.lower_lr.factor, section.lower_lr.limit) == (0.5, 3)
    assert section.promote.limit == 3


def test_each_response_has_its_settings_and_they_are_in_the_policys_string() -> None:
    guard = {"response": "lower-lr", "lower_lr": {"factor": 0.1, "limit": 7}}
    policy = PrecisionPolicy.preset("bf16-mixed", guard=guard)
    assert str(policy).endswith("guard.response=lower-lr,guard.lower_lr.factor=0.1,guard.lower_lr.limit=7")
    assert PrecisionPolicy.parse(str(policy)) == policy


@pytest.mark.parametrize(
    ("guard", "key"),
    [
        ({"rollback": {"steps": 0}}, "rollback.steps"),
        ({"rollback": {"limit": 0}}, "rollback.limit"),
        ({"lower_lr": {"factor": 1.0}}, "lower_lr.factor"),
        ({"lower_lr": {"factor": 0.0}}, "lower_lr.factor"),
        ({"promote": {"limit": -1}}, "promote.limit"),
        ({"promote": {"to": "float64"}}, "promote.to"),
    ],
)
def test_what_makes_no_sense_is_refused(guard: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError) as error:
        GuardSection.model_validate(guard)
    assert [".".join(map(str, e["loc"])) for e in error.value.errors()] == [key]


def test_settings_that_came_later_do_not_change_the_hash_of_a_policy_that_leaves_them() -> None:
    plain = PrecisionPolicy.preset("float32")
    spelled_out = PrecisionPolicy.preset("float32", guard={"promote": {"limit": 3}})
    changed = PrecisionPolicy.preset("float32", guard={"promote": {"limit": 4}})
    assert spelled_out.hash() == plain.hash() == "4bcbb90a435f3bf9"
    assert changed.hash() != plain.hash()
