"""What an optimizer's own step makes of finite gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from castiron.torch.dtypes import NARROW, dtype_name
from castiron.torch.replay.step import ReplayStep
from castiron.torch.replay.values import is_finite, statistics
from castiron.torch.snapshot import Snapshot
from castiron.training.event_words import CODES
from castiron.training.incident import Attribution, Producer


def inspect_optimizers(step: ReplayStep) -> Attribution | None:
    """Step each optimizer on the step's gradients, see what it spoils, and put everything back.

    None where every parameter and state stays finite, or where a gradient is not.
    """
    if not step.optimizers:
        return None
    snapshot = Snapshot(step.root, step.optimizers, whole=True)
    snapshot.take()
    try:
        step.restore()
        for parameter in step.root.parameters():
            parameter.grad = None
        for i, batch in enumerate(step.batches):
            step.run(batch, i)
        for parameter in step.root.parameters():
            if parameter.grad is not None and step.scale != 1:
                parameter.grad /= step.scale
        for optimizer in step.optimizers:
            if found := _inspect(step, optimizer):
                return found
        return None
    finally:
        snapshot.restore()


def _inspect(step: ReplayStep, optimizer: Optimizer) -> Attribution | None:
    names = {p: n for n, p in step.root.named_parameters()}
    before = {p: is_finite(p) for p in names}
    gradients = {p: p.grad.clone() for p in names if p.grad is not None}
    if not all(is_finite(g) for g in gradients.values()):
        return None
    optimizer.step()
    for parameter, name in names.items():
        state = {
            k: v for k, v in optimizer.state.get(parameter, {}).items() if isinstance(v, Tensor) and v.dim()
        }
        spoiled = next((k for k, v in state.items() if not is_finite(v)), None)
        if (not before[parameter] or is_finite(parameter)) and spoiled is None:
            continue
        term, why, what_to_do = _term(optimizer, parameter, gradients.get(parameter), state, spoiled)
        gradient = gradients.get(parameter)
        return Attribution(
            code=CODES["optimizer"],
            phase="optimizer",
            event="optimizer",
            message=f"The step of {type(optimizer).__name__} makes '{name}' not finite, though its gradient "
            f"is: {why}",
            producer=Producer(op=type(optimizer).__name__, module=name.rpartition(".")[0], parameter=name),
            operands=(
                *((statistics("gradient", gradient),) if gradient is not None else ()),
                *(statistics(k, v) for k, v in state.items()),
            ),
            results=(statistics(name, parameter),),
            remedy=f"{what_to_do} ({term})",
        )
    return None


def _term(
    optimizer: Optimizer,
    parameter: Tensor,
    gradient: Tensor | None,
    state: dict[str, Tensor],
    spoiled: str | None,
) -> tuple[str, str, str]:
    """→ the term to blame, why, and what to do."""
    group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    dtype = dtype_name(parameter.dtype)
    eps = group.get("eps")
    rate = float(group["lr"])
    if not torch.isfinite(torch.tensor(rate)):
        return "learning rate", f"its learning rate is {rate}", "Mend the learning-rate schedule."
    if eps is not None and parameter.dtype in NARROW and torch.tensor(eps, dtype=parameter.dtype) == 0:
        return (
            "eps",
            f"eps={eps:g} is 0 in {dtype}, and where the second moment is 0 too it divides 0 by 0",
            "Use `fused=True`, float32 parameters or a master copy (`updates: {master: float32}`), or an eps "
            f"that {dtype} can hold",
        )
    if spoiled is not None:
        largest = float(gradient.abs().max()) if gradient is not None and gradient.numel() else 0.0
        return (
            spoiled,
            f"'{spoiled}' overflows {dtype_name(state[spoiled].dtype)} at gradients up to {largest:g}",
            "Clip gradients, or keep the optimizer's state wider (`state: float32`)",
        )
    return (
        "update",
        f"an update beyond what {dtype} can hold (learning rate {rate:g})",
        "Lower the learning rate, or clip gradients",
    )
