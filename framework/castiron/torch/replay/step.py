"""What replay needs of a step that was held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from castiron.training.held import Verdict


@dataclass(kw_only=True)
class ReplayStep:
    """A held step that can be run again.

    Parameters and optimizer state are as they were before it; replay leaves them so, and takes
    gradients away.
    """

    root: nn.Module
    """Names of modules, parameters and buffers are relative to it."""
    batches: Sequence[Any]
    """The accumulated micro-batches, in order, on the device: tensors, or trees of them. A mapping's `row`
    (int64 [B]) holds row numbers of the data set."""
    run: Callable[[Any, int], Tensor | None]
    """`run(batch, i)`: forward, loss and backward of one micro-batch, in the run's own formats and with its
    loss scale. → the loss, not scaled. Steps no optimizer."""
    restore: Callable[[], None]
    """Puts buffers and random generators back to what they were before the step."""
    verdict: Verdict
    """What the guard saw."""
    optimizers: Sequence[Optimizer] = field(default_factory=tuple)
    scale: float = 1.0
    """Loss scale: gradients are that much too large while backward runs."""
    policy: str = ""
    """The policy's short string."""
