"""Gradients read as they come, while they lie in the processor's cache.

Read after the backward pass, large ones come from memory again: that alone is two hundredths of a CPU step of
wide layers. It works where the answer can be had at once, on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from castiron.torch.finite import LARGE, is_finite


class Arrivals:
    """The large gradients that one backward pass completes, and which of them are finite.

    A hook looks at each when autograd has written it. What is changed afterwards in a way that autograd
    counts (in place, or by another tensor) is no longer known to be finite.

    Args:
        parameters: those on a CPU with dense, large gradients are looked at.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._open = False
        self._finite: dict[nn.Parameter, tuple[Tensor, int]] = {}
        self._hooks = [
            p.register_post_accumulate_grad_hook(self._came)
            for p in parameters
            if p.requires_grad and p.is_cpu and p.numel() >= LARGE
        ]

    def begin(self) -> None:
        """The next backward pass counts."""
        self._finite.clear()
        self._open = True

    def end(self) -> frozenset[nn.Parameter]:
        """It is over; the parameters whose gradients are finite."""
        good = frozenset(
            p for p, (grad, version) in self._finite.items() if p.grad is grad and grad._version == version
        )
        self._finite.clear()
        self._open = False
        return good

    def remove(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _came(self, parameter: nn.Parameter) -> None:
        grad = parameter.grad
        if not self._open or grad is None:
            return
        self._finite.pop(parameter, None)
        if not grad.is_sparse and is_finite(grad.detach()):
            self._finite[parameter] = (grad, grad._version)
