"""Loss scaling within declared bounds: none, static or dynamic, in one shape.

Per step: `scale(loss).backward()`, `unscale_(optimizer, …)`, clip, `step(optimizer)` for each, `update()`
once. The scale, the count of good steps and the verdict stay on the device; optimizers whose fused kernels
take the verdict (`found_inf`) are stepped without looking at it. Optimizers that are unscaled before any of
them steps share one verdict.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from castiron.diagnostics import CastironError, Finding, finding
from castiron.policy.sections import DynamicScaling, NoScaling, StaticScaling
from castiron.torch.scaling_kernels import unscale_gradients, update_scale
from castiron.training.scale_findings import check_invertible, check_kind, look_at


class NoScaler:
    """The loss is not scaled: every method does the least it can."""

    kind = "none"
    active = False

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss, times the scale."""
        return loss

    def unscale_(self, *optimizers: Optimizer) -> None:
        """Divide the gradients of these optimizers' parameters by the scale, in place, once per step."""

    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        """The optimizer's step, unless a gradient is not finite: then nothing of it changes."""
        return optimizer.step(*args, **kwargs)

    def update(self) -> None:
        """Choose the next scale; once per step, after every optimizer has stepped."""

    @property
    def found_inf(self) -> torch.Tensor | None:
        """1.0 where a gradient unscaled so far in this step is not finite, else 0.0; None before that."""
        return None

    def discard(self) -> None:
        """Forget the step that was begun: nothing of it is counted, and no scale follows from it."""

    def tensors(self, device: torch.device) -> list[torch.Tensor]:
        """The scale and its counts on the device, as they are: copies of them can be put back in place."""
        return []

    def get_scale(self) -> float:
        """The scale. Waits for the device."""
        return 1.0

    def counts(self) -> dict[str, int]:
        """`overflows`: steps with gradients that were not finite; `at_floor`: how many of them in a row, up
        to the last step, met a scale that could fall no further. Waits for the device."""
        return {"overflows": 0, "at_floor": 0}

    def check(self) -> Finding | None:
        """What there is to say since the last call: S401 once the scale has stood at its floor for `patience`
        overflows, S403 (information) where gradients overflowed, else None. Waits for the device."""
        return None

    def state_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ConfigError: the state is of another kind of scaling (S404).
        """
        check_kind(self.kind, state)


class StaticScaler(NoScaler):
    """One constant scale.

    Raises:
        ConfigError: the scale, or one divided by it, is not finite in float32 (S402).
    """

    kind = "static"
    active = True

    def __init__(self, scaling: StaticScaling) -> None:
        check_invertible("scale", scaling.scale)
        self._initial = scaling.scale
        self._scale: torch.Tensor | None = None
        self._overflows: torch.Tensor | None = None
        self._at_floor: torch.Tensor | None = None
        self._pending: dict[str, float] = {"scale": scaling.scale, "overflows": 0, "at_floor": 0}
        self._unscaled: set[int] = set()
        self._stepped: set[int] = set()
        self._found_inf: torch.Tensor | None = None

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        scale = self._on(loss.device)
        return loss * scale.to(loss.device, non_blocking=True)

    @torch.no_grad()
    def unscale_(self, *optimizers: Optimizer) -> None:
        for optimizer in optimizers:
            if id(optimizer) in self._unscaled:
                raise CastironError(
                    finding(
                        "S405",
                        "the gradients of an optimizer are unscaled a second time within one step",
                        expected="unscale_ once per optimizer and step, update() after the last",
                        received=f"a second unscale_ of {type(optimizer).__name__}",
                    )
                )
            self._unscaled.add(id(optimizer))
            found = unscale_gradients(_parameters(optimizer), self._on(_home(optimizer)))
            self._found_inf = found if self._found_inf is None else torch.maximum(self._found_inf, found)

    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        """The optimizer's step, unless a gradient of those unscaled so far in this step is not finite."""
        if id(optimizer) in self._stepped:
            raise CastironError(
                finding(
                    "S405",
                    "an optimizer steps a second time without update()",
                    expected="update() between two steps",
                    received=f"a second step of {type(optimizer).__name__}",
                )
            )
        if kwargs.get("closure") is not None or any(callable(a) for a in args):
            raise CastironError(
                finding(
                    "S405",
                    "the step of a scaled loss takes no closure: gradients are unscaled before it",
                    expected="scale(loss).backward(), unscale_, step(optimizer)",
                    received=f"step({type(optimizer).__name__}, closure)",
                )
            )
        if id(optimizer) not in self._unscaled:
            self.unscale_(optimizer)
        self._stepped.add(id(optimizer))
        found = self._found_inf
        assert found is not None
        return step_unless(optimizer, found, *args, **kwargs)

    @property
    def found_inf(self) -> torch.Tensor | None:
        return self._found_inf

    def discard(self) -> None:
        self._found_inf = None
        self._unscaled.clear()
        self._stepped.clear()

    def tensors(self, device: torch.device) -> list[torch.Tensor]:
        scale = self._on(device)
        assert self._overflows is not None
        assert self._at_floor is not None
        return [scale, self._overflows, self._at_floor]

    @torch.no_grad()
    def update(self) -> None:
        found = self._found_inf
        self.discard()
        if found is not None:
            scale = self._on(found.device)
            assert self._overflows is not None
            self._overflows += found.to(scale.device)
            self._change(scale, found.to(scale.device))

    def _change(self, scale: torch.Tensor, found_inf: torch.Tensor) -> None:
        """A static scale stays as it is."""

    def get_scale(self) -> float:
        return float(self._pending["scale"] if self._scale is None else self._scale.item())

    def counts(self) -> dict[str, int]:
        if self._overflows is None or self._at_floor is None:
            return {name: int(self._pending[name]) for name in ("overflows", "at_floor")}
        return {"overflows": int(self._overflows.item()), "at_floor": int(self._at_floor.item())}

    def state_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "scale": self.get_scale(), **self.counts()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_kind(self.kind, state)
        self._restore({**state, "scale": self._initial})

    def _restore(self, state: dict[str, Any]) -> None:
        self._pending = {name: state[name] for name in self._pending}
        self._scale = None

    def _on(self, device: torch.device) -> torch.Tensor:
        """The scale; made on the device of the first loss."""
        if self._scale is None:
            self._scale = torch.full((), self._pending["scale"], dtype=torch.float32, device=device)
            self._overflows = torch.full((), self._pending["overflows"], dtype=torch.float32, device=device)
            self._at_floor = torch.full((), self._pending["at_floor"], dtype=torch.float32, device=device)
        return self._scale


class DynamicScaler(StaticScaler):
    """The scale grows after `interval` good steps in a row, falls after a bad one, and stays in its bounds.

    Raises:
        ConfigError: a bound, or one divided by it, is not finite in float32 (S402).
    """

    kind = "dynamic"

    def __init__(self, scaling: DynamicScaling) -> None:
        check_invertible("min", scaling.min)
        check_invertible("max", scaling.max)
        super().__init__(StaticScaling(scale=scaling.initial))
        self.scaling = scaling
        self._good: torch.Tensor | None = None
        self._pending["good"] = 0
        self._reported = 0

    def _change(self, scale: torch.Tensor, found_inf: torch.Tensor) -> None:
        s, good, at_floor = self.scaling, self._good, self._at_floor
        assert good is not None
        assert at_floor is not None
        # in a row: an overflow that met the floor adds one, any good step starts anew
        at_floor += scale <= s.min
        at_floor *= found_inf
        update_scale(scale, good, found_inf, s.growth, s.backoff, s.interval)
        scale.clamp_(s.min, s.max)

    def check(self) -> Finding | None:
        counts = self.counts()
        new = counts["overflows"] - self._reported
        self._reported = counts["overflows"]
        return look_at(self.scaling, counts, new, self.get_scale)

    def state_dict(self) -> dict[str, Any]:
        good = self._pending["good"] if self._good is None else self._good.item()
        return {**super().state_dict(), "good": int(good)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; a scale out of the present bounds is set to the nearer one.

        Raises:
            ConfigError: the state is of another kind of scaling (S404), or its scale is not finite (S402).
        """
        check_kind(self.kind, state)
        check_invertible("saved scale", float(state["scale"]))
        scale = min(max(float(state["scale"]), self.scaling.min), self.scaling.max)
        self._good = None
        self._reported = int(state["overflows"])
        self._restore({**state, "scale": scale})

    def tensors(self, device: torch.device) -> list[torch.Tensor]:
        found = super().tensors(device)
        assert self._good is not None
        return [*found, self._good]

    def _on(self, device: torch.device) -> torch.Tensor:
        if self._scale is None:
            good = int(self._pending["good"])
            self._good = torch.full((), good, dtype=torch.int32, device=device)
        return super()._on(device)


Scaler = NoScaler
"""What every scaler is to those who call it."""


def make_scaler(scaling: NoScaling | StaticScaling | DynamicScaling) -> Scaler:
    """The scaler that a policy's `scaling` section declares.

    Raises:
        ConfigError: a scale that cannot be inverted in float32 (S402).
    """
    if isinstance(scaling, DynamicScaling):
        return DynamicScaler(scaling)
    return StaticScaler(scaling) if isinstance(scaling, StaticScaling) else NoScaler()


def takes_verdict(optimizer: Optimizer) -> bool:
    """Whether the optimizer's kernels leave everything as it is where `found_inf` says so."""
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return False
    return all(group.get("fused") for group in optimizer.param_groups)


def step_unless(optimizer: Optimizer, found_inf: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """The optimizer's step, unless `found_inf` (0.0 or 1.0, 0-dim) is 1, or a verdict that was given before
    (`give_verdict`): then nothing of it changes. Waits for the device only where the optimizer cannot take
    the verdict there (`takes_verdict`)."""
    if not takes_verdict(optimizer):
        return None if bool(found_inf.item()) else optimizer.step(*args, **kwargs)
    found_inf = found_inf.to(_home(optimizer))
    given = getattr(optimizer, "found_inf", None)
    give_verdict(optimizer, found_inf if given is None else torch.maximum(found_inf, given))
    try:
        return optimizer.step(*args, **kwargs)
    finally:
        forget_verdict(optimizer)


def give_verdict(optimizer: Optimizer, found_inf: torch.Tensor) -> None:
    """From here on the optimizer's steps change nothing where `found_inf` (0.0 or 1.0, 0-dim) is 1. For those
    that take it (`takes_verdict`)."""
    fused: Any = optimizer
    fused.found_inf, fused.grad_scale = found_inf.to(_home(optimizer)), None


def forget_verdict(optimizer: Optimizer) -> None:
    """Steps count again, whatever verdict was given."""
    optimizer.__dict__.pop("found_inf", None)
    optimizer.__dict__.pop("grad_scale", None)


def _parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _home(optimizer: Optimizer) -> torch.device:
    device: torch.device = optimizer.param_groups[0]["params"][0].device
    return device
