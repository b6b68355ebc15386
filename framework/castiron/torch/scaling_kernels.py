"""Kernels of loss scaling: torch's own, private ones, and the same from public operations.

Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


def unscale_gradients(parameters: Iterable[torch.Tensor], scale: torch.Tensor) -> torch.Tensor:
    """Divide gradients by the scale in place; whether one of them (or 1/scale) is not finite, as 0.0 or 1.0.

    Gradients of float16 parameters are made float32 first: dividing in float16 would lose again what the
    scale had saved from underflow. Nothing waits for the device.
    """
    inverse = scale.double().reciprocal().float()
    found = (~(inverse.isfinite() & (inverse > 0))).float()
    groups: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is None:
            continue
        gradient = _gradient_values(parameter)
        groups.setdefault((gradient.device, gradient.dtype), []).append(gradient)
    for (device, _), gradients in groups.items():
        here = torch.zeros((), dtype=torch.float32, device=device)
        multiply_and_check(gradients, here, inverse.to(device, non_blocking=True))
        found = torch.maximum(found, here.to(found.device, non_blocking=True))
    return found


def multiply_and_check(gradients: list[torch.Tensor], found_inf: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiply gradients of one device and dtype in place; `found_inf` becomes 1 where one is not finite."""
    kernel = getattr(torch, "_amp_foreach_non_finite_check_and_unscale_", None)
    if kernel is not None:
        kernel(gradients, found_inf, factor)
    else:
        multiply_and_check_plainly(gradients, found_inf, factor)


def multiply_and_check_plainly(
    gradients: list[torch.Tensor], found_inf: torch.Tensor, factor: torch.Tensor
) -> None:
    """The same from public operations, several passes over the memory: for a torch without the kernel."""
    for gradient in gradients:
        found_inf.copy_(torch.maximum(found_inf, (~gradient.isfinite().all()).float()))
    torch._foreach_mul_(gradients, factor)


def update_scale(
    scale: torch.Tensor,
    good: torch.Tensor,
    found_inf: torch.Tensor,
    growth: float,
    backoff: float,
    interval: int,
) -> None:
    """torch's rule in place: back off after an overflow, grow after `interval` good steps in a row."""
    kernel = getattr(torch, "_amp_update_scale_", None)
    if kernel is not None:
        kernel(scale, good, found_inf, growth, backoff, interval)
    else:
        update_scale_plainly(scale, good, found_inf, growth, backoff, interval)


def update_scale_plainly(
    scale: torch.Tensor,
    good: torch.Tensor,
    found_inf: torch.Tensor,
    growth: float,
    backoff: float,
    interval: int,
) -> None:
    """The same from public operations, on the device like the kernel."""
    bad = found_inf > 0
    reached = ~bad & (good + 1 >= interval)
    grown = scale * growth
    larger = torch.where(reached & grown.isfinite(), grown, scale)
    scale.copy_(torch.where(bad, scale * backoff, larger))
    good.copy_(torch.where(bad | reached, 0, good + 1))


def _gradient_values(parameter: torch.Tensor) -> torch.Tensor:
    gradient = parameter.grad
    assert gradient is not None
    if gradient.dtype is torch.float16:
        if hasattr(parameter, "grad_dtype"):
            parameter.grad_dtype = None
        parameter.grad = gradient = gradient.float()
    if gradient.is_sparse:
        # duplicates may overflow only when they are added up
        parameter.grad = gradient = gradient.coalesce()
        return gradient._values()
    return gradient
