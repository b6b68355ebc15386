"""Whether a verdict can stay on the device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from castiron.policy import PrecisionPolicy
from castiron.torch.late import LateVerdict, can_be_late
from castiron.torch.updates import guard_updates


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_flag_arrives_as_it_was_when_it_was_sent(value: float) -> None:
    flag = torch.tensor(value)
    late = LateVerdict(flag)
    flag.fill_(1 - value)
    assert late.read() == bool(value)


def test_only_optimizers_that_take_a_verdict_can_wait() -> None:
    parameters = list(nn.Linear(2, 2).parameters())
    assert can_be_late([torch.optim.AdamW(parameters, fused=True), torch.optim.SGD(parameters, fused=True)])
    assert not can_be_late([torch.optim.AdamW(parameters)])
    assert not can_be_late([torch.optim.SGD(parameters, fused=True), torch.optim.RMSprop(parameters)])


def test_random_rounding_cannot_wait() -> None:
    model = nn.Linear(2, 2).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    guard_updates(optimizer, PrecisionPolicy.preset("bf16-true", updates={"rounding": "stochastic"}))
    assert not can_be_late([optimizer])
    guard_updates(optimizer, PrecisionPolicy.preset("bf16-true", updates={"master": "float32"}))
    assert can_be_late([optimizer])
