"""How an update reaches parameters narrower than it: master copies, stochastic rounding, and the format of
the optimizer's state.

torch's optimizers update in the format of the parameter and keep their state in it. `guard_updates` puts
hooks on an optimizer so that its step works on a wide stand-in of every narrower parameter instead, whatever
the algorithm, fused or not. Outside of `step()` and of saving and loading, the optimizer's groups hold the
model's own parameters: zeroing, clipping, unscaling and schedules see nothing of it.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from castiron.diagnostics import Place, PlanError, finding
from castiron.formats import is_wider
from castiron.policy import PrecisionPolicy
from castiron.torch.dtypes import NARROW, torch_dtype
from castiron.torch.rounding import stochastic_round_

_GUARDS: weakref.WeakKeyDictionary[Optimizer, UpdateGuard] = weakref.WeakKeyDictionary()
_MASTERS = "castiron_masters"


def guard_updates(optimizer: Optimizer, policy: PrecisionPolicy, *, seed: int = 0) -> UpdateGuard | None:
    """Make an optimizer update its parameters as the policy's `updates`, `state` and `accumulate` declare.

    Nothing is put on an optimizer that does so by itself (float32 parameters with float32 state); then None
    is returned. Calling it again replaces the earlier guard. Call it before the first step.

    Gradients of narrow parameters are summed in the accumulate dtype from here on.

    Args:
        optimizer: any torch optimizer whose step needs no more than one evaluation of its closure.
        policy: param, state, accumulate and updates are read.
        seed: of the stochastic rounding.

    Raises:
        PlanError: the optimizer evaluates its closure several times (L210).
    """
    release_updates(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    work = {p.dtype: _work_dtype(p.dtype, policy) for p in parameters if p.dtype.is_floating_point}
    state = torch_dtype(policy.state)
    # Unscaling leaves gradients of float16 parameters in float32: the step has to round them.
    as_it_is = all(wide is own and state is own for own, wide in work.items())
    if as_it_is and torch.float16 not in work:
        return None
    if isinstance(optimizer, torch.optim.LBFGS):
        raise PlanError(
            finding(
                "L210",
                "LBFGS evaluates its closure several times a step, on the model's own parameters",
                place=Place(key="precision.updates"),
                expected="an optimizer that updates once per step, or parameters and state in one format",
                received=f"LBFGS with updates {policy.updates.rounding}, state {policy.state}",
                remedy="Use precision: float32, or another optimizer.",
            )
        )
    guard = UpdateGuard(optimizer, policy, seed)
    _GUARDS[optimizer] = guard
    return guard


def release_updates(optimizer: Optimizer) -> None:
    """Take a guard off again; master copies are dropped."""
    guard = _GUARDS.pop(optimizer, None)
    if guard is not None:
        guard.remove()


def guard_of(optimizer: Optimizer) -> UpdateGuard | None:
    """The guard that `guard_updates` put on an optimizer."""
    return _GUARDS.get(optimizer)


class UpdateGuard:
    """The hooks of one optimizer. Made by `guard_updates`."""

    def __init__(self, optimizer: Optimizer, policy: PrecisionPolicy, seed: int) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._policy = policy
        self._state = torch_dtype(policy.state)
        self._stochastic = policy.updates.rounding == "stochastic"
        self._keeps = policy.updates.master is not None
        self._accumulate = torch_dtype(policy.accumulate)
        self._standins: dict[torch.Tensor, nn.Parameter] = {}
        """Model parameter → what the optimizer updates in its place, and keys its state by."""
        self._seen: dict[torch.Tensor, tuple[int, int]] = {}
        """Version and address of a parameter when its master was last written to it."""
        self._generators: dict[torch.device, torch.Generator] = {}
        self._seed = seed
        self._swapped = False
        self._loading: dict[str, Any] = {}
        for parameter in self._parameters(optimizer):
            self._adopt(parameter)
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_state_dict_pre_hook(self._before_saving),
            optimizer.register_state_dict_post_hook(self._after_saving),
            optimizer.register_load_state_dict_pre_hook(self._before_loading),
            optimizer.register_load_state_dict_post_hook(self._after_loading),
        ]

    # --- what others may look at --------------------------------------------------------------------

    def master(self, parameter: torch.Tensor) -> torch.Tensor | None:
        """The master copy of a parameter; None where none is kept."""
        found = self._standins.get(parameter)
        return found.data if found is not None and self._keeps else None

    def state_of(self, parameter: torch.Tensor) -> dict[str, Any]:
        """The optimizer's state of a parameter of the model."""
        optimizer = self._alive()
        state: dict[str, Any] = optimizer.state.get(self._standins.get(parameter, parameter), {})
        return state

    @property
    def rounds_randomly(self) -> bool:
        """Whether every step draws random numbers, also one whose update is nothing."""
        return self._stochastic

    def kept(self) -> dict[str, Any]:
        """Copies of what is kept here between steps: masters, and the generators of stochastic rounding."""
        return {
            "masters": {p: s.data.clone() for p, s in self._standins.items()} if self._keeps else {},
            "generators": {d: g.get_state() for d, g in self._generators.items()},
        }

    def put_back(self, kept: dict[str, Any]) -> None:
        """Put back what `kept` gave. Put the parameters themselves back before."""
        for parameter, value in kept["masters"].items():
            self._standins[parameter].data.copy_(value)
            self._seen[parameter] = (parameter._version, parameter.data_ptr())
        for device, state in kept["generators"].items():
            self._generators[device].set_state(state)
        for device in set(self._generators) - set(kept["generators"]):
            del self._generators[device]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    # --- a step ------------------------------------------------------------------------------------

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        self._swap(optimizer, to_standins=False)  # a step that raised left it the other way
        args, kwargs = _evaluate_closure(args, kwargs)
        with torch.no_grad():
            for parameter in self._parameters(optimizer):
                standin = self._adopt(parameter)
                if standin is not None:
                    self._fill(parameter, standin)
                    if parameter.grad is not None:
                        standin.grad = parameter.grad.to(standin.dtype)
                elif parameter.grad is not None and parameter.grad.dtype is not parameter.dtype:
                    parameter.grad = parameter.grad.to(parameter.dtype)
            self._swap(optimizer, to_standins=True)
            self._cast_state(optimizer, narrow=False)
        return (args, kwargs)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            self._cast_state(optimizer, narrow=True)
            self._swap(optimizer, to_standins=False)
            for parameter in self._parameters(optimizer):
                standin = self._standins.get(parameter)
                if standin is None:
                    continue
                if standin.grad is not None:
                    standin.grad = None
                    self._write(standin, parameter)
                if not self._keeps:
                    standin.data = standin.data.new_empty(0)

    def _fill(self, parameter: torch.Tensor, standin: nn.Parameter) -> None:
        if not self._keeps:
            standin.data = parameter.detach().to(standin.dtype)
        elif self._seen.get(parameter) != (parameter._version, parameter.data_ptr()):
            # somebody else wrote to the parameter (a loaded checkpoint): where it is not the master rounded,
            # the parameter is right
            same = standin.data.to(parameter.dtype) == parameter.detach()
            standin.data = torch.where(same, standin.data, parameter.detach().to(standin.dtype))
            self._seen[parameter] = (parameter._version, parameter.data_ptr())

    def _write(self, standin: nn.Parameter, parameter: torch.Tensor) -> None:
        if self._stochastic and parameter.dtype is torch.bfloat16:
            stochastic_round_(parameter.detach(), standin.data, self._generator(parameter.device))
        else:
            parameter.detach().copy_(standin.data)
        self._seen[parameter] = (parameter._version, parameter.data_ptr())

    # --- stand-ins ---------------------------------------------------------------------------------

    def _adopt(self, parameter: torch.Tensor) -> nn.Parameter | None:
        """The stand-in of a parameter, made when it is first met; None where it needs none."""
        if parameter in self._standins:
            return self._standins[parameter]
        wide = _work_dtype(parameter.dtype, self._policy)
        if parameter.dtype in NARROW and _sums_gradients_itself(parameter):
            parameter.grad_dtype = self._accumulate if wide is not parameter.dtype else None
        if wide is parameter.dtype:
            return None
        value = parameter.detach().to(wide, copy=True)
        standin = nn.Parameter(value if self._keeps else value.new_empty(0), requires_grad=True)
        self._standins[parameter] = standin
        self._seen[parameter] = (parameter._version, parameter.data_ptr())
        optimizer = self._alive()
        if parameter in optimizer.state:
            optimizer.state[standin] = optimizer.state.pop(parameter)
        return standin

    def _swap(self, optimizer: Optimizer, *, to_standins: bool) -> None:
        if self._swapped is to_standins:
            return
        self._swapped = to_standins
        table: dict[torch.Tensor, torch.Tensor] = {}
        for parameter, standin in self._standins.items():
            table[parameter if to_standins else standin] = standin if to_standins else parameter
        for group in optimizer.param_groups:
            group["params"] = [table.get(p, p) for p in group["params"]]

    def _cast_state(self, optimizer: Optimizer, *, narrow: bool) -> None:
        """Moments to the declared format between steps, and to that of the update within one."""
        for parameter in self._parameters(optimizer):
            dtype = self._state if narrow else parameter.dtype
            state = optimizer.state.get(parameter)
            if not state:
                continue
            for name, value in state.items():
                moment = isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 0
                if moment and name != "step" and value.dtype is not dtype:
                    state[name] = value.to(dtype)

    def _parameters(self, optimizer: Optimizer) -> list[torch.Tensor]:
        return [p for group in optimizer.param_groups for p in group["params"]]

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]

    def _alive(self) -> Optimizer:
        optimizer = self._optimizer()
        assert optimizer is not None
        return optimizer

    # --- saving and loading ------------------------------------------------------------------------

    def _before_saving(self, optimizer: Optimizer) -> None:
        self._swap(optimizer, to_standins=True)

    def _after_saving(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        self._swap(optimizer, to_standins=False)
        parameters = self._parameters(optimizer)
        record: dict[str, Any] = {}
        if self._keeps:
            record["values"] = {
                i: self._standins[p].data for i, p in enumerate(parameters) if p in self._standins
            }
        if self._generators:
            record["generators"] = {str(d): g.get_state() for d, g in self._generators.items()}
        return {**state_dict, _MASTERS: record}

    def _before_loading(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        self._loading = state_dict.get(_MASTERS, {})
        self._swap(optimizer, to_standins=True)
        return {k: v for k, v in state_dict.items() if k != _MASTERS}

    @torch.no_grad()
    def _after_loading(self, optimizer: Optimizer) -> None:
        self._cast_state(optimizer, narrow=True)
        self._swap(optimizer, to_standins=False)
        for i, parameter in enumerate(self._parameters(optimizer)):
            standin = self._standins.get(parameter)
            value = self._loading.get("values", {}).get(i)
            if standin is not None and value is not None and self._keeps:
                standin.data = value.to(device=parameter.device, dtype=standin.dtype, copy=True)
                self._seen.pop(parameter, None)
        for device, state in self._loading.get("generators", {}).items():
            self._generator(torch.device(device)).set_state(state.cpu())
        self._loading = {}


def _sums_gradients_itself(parameter: torch.Tensor) -> bool:
    """Whether torch lets the gradient have a format of its own: not when a bucket of DDP's holds it."""
    if not hasattr(parameter, "grad_dtype") or parameter.grad is not None:
        return False
    return not (torch.distributed.is_available() and torch.distributed.is_initialized())


def _work_dtype(own: torch.dtype, policy: PrecisionPolicy) -> torch.dtype:
    """What a parameter of this format is updated in: its own, or wider."""
    if own not in NARROW:
        return own
    updates = policy.updates
    if updates.master is not None:
        return torch_dtype(updates.master)
    if updates.rounding == "stochastic":
        return torch.float32
    if is_wider(policy.state, "float16") and policy.state not in ("bfloat16", "float16"):
        return torch_dtype(policy.state)
    return own


def _evaluate_closure(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The closure must see the model's own parameters: it is called now, and its value handed on.

    `args` begin with the optimizer itself.
    """
    optimizer, *rest = args
    closure = rest[0] if rest else kwargs.get("closure")
    if closure is None:
        return args, kwargs
    with torch.enable_grad():
        loss = closure()
    if rest:
        return (optimizer, lambda: loss, *rest[1:]), kwargs
    return args, {**kwargs, "closure": lambda: loss}
