"""F313, F314: what an optimizer keeps, found by one step on tiny parameters of the same formats.

An optimizer's step reads numbers (its step counter), which fake tensors do not have. Its own class, with its
own settings, does one real step on parameters of two elements per axis; the optimizer itself is not touched.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from castiron.diagnostics import Finding, Place, finding
from castiron.policy import PrecisionPolicy
from castiron.torch.audit.known import judge_optimizer
from castiron.torch.dtypes import NARROW, dtype_name, torch_dtype
from castiron.torch.updates import guard_of, guard_updates


class Rehearsal:
    """What one step of an optimizer keeps, by parameter of the model."""

    def __init__(self, optimizer: Optimizer, policy: PrecisionPolicy, device: torch.device) -> None:
        self.state: dict[int, dict[str, torch.dtype]] = {}
        """id of a parameter → what is kept of it → in which format."""
        self.error: Exception | None = None
        tiny: dict[int, nn.Parameter] = {}
        alike: dict[tuple[torch.dtype, int], nn.Parameter] = {}
        groups: list[dict[str, Any]] = []
        self._like: dict[int, int] = {}
        for group in optimizer.param_groups:
            mine: list[nn.Parameter] = []
            for p in group["params"]:
                if not p.requires_grad or not p.is_floating_point():
                    continue
                key = (p.dtype, p.dim())
                if key not in alike:
                    shape = [min(n, 2) for n in p.shape]
                    made = nn.Parameter(torch.full(shape, 0.5, dtype=p.dtype, device=device))
                    made.grad = torch.full_like(made, 0.25)
                    alike[key] = tiny[id(p)] = made
                    mine.append(made)
                self._like[id(p)] = id(alike[key])
            groups.append({**{k: v for k, v in group.items() if k != "params"}, "params": mine})
        try:
            twin = _twin(optimizer, [g for g in groups if g["params"]])
            guarded = guard_of(optimizer) is not None
            guard = guard_updates(twin, policy) if guarded else None
            twin.step()
        except Exception as e:  # an optimizer of a user's own may do anything in its step
            self.error = e
            return
        for made in alike.values():
            state = guard.state_of(made) if guard is not None else twin.state.get(made, {})
            formats = {
                k: v.dtype for k, v in state.items() if isinstance(v, Tensor) and v.is_floating_point()
            }
            self.state[id(made)] = {k: d for k, d in formats.items() if k != "step"}
        self.has_masters = guard is not None

    def of(self, parameter: Tensor) -> dict[str, torch.dtype]:
        """What is kept of a parameter of the model."""
        return self.state.get(self._like.get(id(parameter), 0), {})


def check(
    optimizer: Optimizer, policy: PrecisionPolicy, names: dict[int, str], device: torch.device
) -> Iterator[Finding]:
    """Hold an optimizer against the policy's `state` and `updates`.

    Args:
        names: id of a parameter → its full name.
    """
    rehearsal = Rehearsal(optimizer, policy, device)
    cls = type(optimizer).__name__
    if rehearsal.error is not None:
        yield finding(
            "F328",
            f"{cls} could not be tried on small parameters: {type(rehearsal.error).__name__}: "
            f"{str(rehearsal.error)[:200]}",
            place=Place(op=cls, phase="optimizer"),
        )
        return
    expected = torch_dtype(policy.state)
    odd: dict[tuple[str, str], list[str]] = {}
    bare: list[str] = []
    bad: dict[str, Finding] = {}
    stochastic = policy.updates.rounding == "stochastic"
    for group in optimizer.param_groups:
        for p in group["params"]:
            for key, dtype in rehearsal.of(p).items():
                if dtype is not expected:
                    odd.setdefault((key, dtype_name(dtype)), []).append(names.get(id(p), "a parameter"))
            if p.dtype in NARROW and p.requires_grad and guard_of(optimizer) is None:
                bare.append(names.get(id(p), "a parameter"))
            known = judge_optimizer(optimizer, rehearsal.of(p), group, stochastic=stochastic)
            bad.update({f.message: f for f in known})
    yield from bad.values()
    for (key, received), parameters in odd.items():
        yield finding(
            "F313",
            f"{cls} keeps '{key}' of {_some(parameters)} in {received}",
            place=Place(op=cls, phase="optimizer"),
            expected=policy.state,
            received=received,
            parameters=parameters,
        )
    if bare and policy.updates.master is not None:
        yield finding(
            "F314",
            f"{cls} updates {_some(bare)} directly",
            place=Place(op=cls, phase="optimizer"),
            expected=f"a {policy.updates.master} master copy of each",
            received=f"{len(bare)} narrow parameter{'s' if len(bare) > 1 else ''} without one",
            parameters=bare,
        )


def _twin(optimizer: Optimizer, groups: list[dict[str, Any]]) -> Optimizer:
    """An optimizer of the same class and settings, on other parameters; hooks of the first are left out."""
    twin = copy.copy(optimizer)
    twin.__dict__ = dict(optimizer.__dict__)
    twin.param_groups = groups
    twin.state = defaultdict(dict)
    for name in list(twin.__dict__):
        if name.startswith("_optimizer_") and name.endswith("_hooks"):
            twin.__dict__[name] = type(twin.__dict__[name])()
    return twin


def _some(names: list[str]) -> str:
    return f"'{names[0]}'" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
