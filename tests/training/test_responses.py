"""What follows a held step: every rung of the ladder, its limit, and the budget over all of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from castiron.policy.sections import GuardSection
from castiron.training.incident import Attribution, Producer
from castiron.training.responses import Responses


def responses(response: str, **more: Any) -> Responses:
    return Responses(GuardSection.model_validate({"response": response, **more}))


def fault(module: str | None = "head", **more: Any) -> Attribution:
    given = {"code": "N501", "phase": "forward", "event": "overflow", "message": "mm overflowed", **more}
    return Attribution.model_validate({**given, "producer": Producer(op="mm", module=module)})


def test_by_default_the_first_bad_step_stops() -> None:
    ladder = Responses(GuardSection())
    decision = ladder.decide(12)
    assert (decision.response, decision.why, decision.findings) == ("raise", "", ())
    assert ladder.held == 1


def test_hold_goes_on_until_the_budget_of_a_window_is_spent() -> None:
    ladder = responses("hold", budget={"holds": 2, "window": 100})
    assert [ladder.decide(s).response for s in (0, 0, 0)] == ["hold", "hold", "raise"]
    ladder = responses("hold", budget={"holds": 2, "window": 100})
    last = [ladder.decide(s) for s in (0, 1, 2)][-1]
    assert last.why == "the budget of held steps is spent"
    (found,) = last.findings
    assert str(found).startswith(
        "N510 Expected at most 2 held steps in 100. Received 3 in the last 5 at key 'guard.budget'."
    )


def test_held_steps_leave_the_window() -> None:
    ladder = responses("hold", budget={"holds": 1, "window": 10})
    assert [ladder.decide(s).response for s in (0, 20, 40, 60)] == ["hold"] * 4
    assert ladder.decide(61).response == "raise"


def test_no_held_step_may_be_put_up_with() -> None:
    assert responses("hold", budget={"holds": 0}).decide(5).response == "raise"


def test_rollback_has_its_own_limit() -> None:
    ladder = responses("rollback", rollback={"steps": 7, "limit": 2})
    first, second, third = (ladder.decide(10 * s, fault()) for s in (1, 2, 3))
    assert (first.response, first.steps, second.response) == ("rollback", 7, "rollback")
    assert (third.response, third.why) == ("raise", "the limit of the response is spent")
    assert str(third.findings[0]).startswith(
        "N516 The step was bad although the response 'rollback' had been carried out 2 times. Expected no "
        "bad step after 2. Received one more at key 'guard.rollback.limit'."
    )


def test_steps_taken_again_after_a_rollback_count_again() -> None:
    ladder = responses("rollback", rollback={"limit": 9}, budget={"holds": 1, "window": 50})
    assert ladder.decide(100).response == "rollback"
    ladder.went_back(100)  # to step 0; 60 good steps from there the fault comes again
    assert ladder.decide(60).response == "rollback"
    assert ladder.state_dict()["recent"] == [162]
    assert ladder.decide(61).response == "raise"


def test_the_learning_rate_is_lowered_by_the_factor() -> None:
    ladder = responses("lower-lr", lower_lr={"factor": 0.1, "limit": 1})
    assert (ladder.decide(1).factor, ladder.decide(2).response) == (0.1, "raise")


def test_the_layer_to_blame_is_promoted_once() -> None:
    ladder = responses("promote")
    compute = {"head": "bfloat16", "body": "float16"}
    first = ladder.decide(1, fault("head"), compute=compute)
    assert (first.response, first.module) == ("promote", "head")
    again = ladder.decide(2, fault("head"), compute=compute)
    assert (again.response, again.why) == ("hold", "layer 'head' was promoted already")
    assert ladder.decide(3, fault("body"), compute=compute).module == "body"
    assert ladder.promoted == ["head", "body"]


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (fault("head"), "layer 'head' computes in float32 already"),
        (fault(None), "no layer is to blame"),
        (None, "no layer is to blame"),
        (fault("gone"), "the plan has no format for layer 'gone'"),
        (fault(""), "the plan has no format for the model itself"),
    ],
)
def test_what_cannot_be_promoted_is_held(found: Attribution | None, why: str) -> None:
    decision = responses("promote").decide(1, found, compute={"head": "float32"})
    assert (decision.response, decision.why) == ("hold", why)


@pytest.mark.parametrize("response", ["rollback", "lower-lr", "promote"])
def test_nothing_is_changed_when_the_data_are_to_blame(response: str) -> None:
    ladder = responses(response, budget={"holds": 1})
    bad_row = fault(code="D105", phase="data", event="data")
    decision = ladder.decide(1, bad_row, compute={"head": "bfloat16"})
    assert (decision.response, decision.why) == ("hold", "the data are to blame, not the training")
    assert ladder.carried_out == {}
    assert ladder.decide(2, bad_row).response == "raise"


@pytest.mark.parametrize("response", ["rollback", "lower-lr", "promote"])
def test_the_budget_is_over_every_response(response: str) -> None:
    ladder = responses(response, budget={"holds": 1, "window": 9})
    assert ladder.decide(1, fault(), compute={"head": "bfloat16"}).response == response
    last = ladder.decide(2, fault("body"), compute={"body": "bfloat16"})
    assert last.response == "raise"
    assert last.findings[0].code == "N510"


def test_the_counts_survive_a_resumed_run() -> None:
    ladder = responses("rollback", rollback={"limit": 2})
    ladder.decide(5, fault())
    ladder.went_back(3)
    other = responses("rollback", rollback={"limit": 2})
    other.load_state_dict(json.loads(json.dumps(ladder.state_dict())))
    assert other == ladder
    assert [other.decide(9, fault()).response for _ in range(2)] == ["rollback", "raise"]
