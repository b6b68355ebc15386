"""A verdict on its way from the device to the host, which asks for it one step late."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from castiron.torch.scaling import takes_verdict
from castiron.torch.updates import guard_of


class LateVerdict:
    """A flag that is copied into pinned memory behind the work that makes it, and an event that tells when it
    has arrived.

    To read it waits for that event alone, which belongs to the step before: what was queued since goes on.

    Args:
        flag: 0.0 or 1.0, 0-dim, on any device.
    """

    def __init__(self, flag: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if flag.is_cuda:
            self._host = torch.empty((), dtype=flag.dtype, pin_memory=True)
            self._host.copy_(flag, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(flag.device))
        else:
            self._host = flag.clone()

    def read(self) -> bool:
        """Whether the step was bad."""
        if self._event is not None:
            self._event.synchronize()
        return bool(self._host.item())


def can_be_late(optimizers: Iterable[Optimizer]) -> bool:
    """Whether a verdict that stays on the device keeps these optimizers from changing anything: their kernels
    take it, and no parameter is rounded at random afterwards."""
    for optimizer in optimizers:
        updates = guard_of(optimizer)
        if not takes_verdict(optimizer) or (updates is not None and updates.rounds_randomly):
            return False
    return True
