"""What modules hand on, watched at their boundaries: one flag per module, kept on the device."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from castiron.torch.trees import map_tensors

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_NAN, _NEGATIVE = 0, 1


class ActivationWatch:
    """Notes which modules handed on a value that is not finite since `begin`.

    The hooks are there from the start, because a compiled model never calls those that are registered after
    its first run; between steps they do nothing. What a module hands on is reduced on its device and noted in
    one tensor there: no step waits for it.

    -inf is what masks are made of: a module that hands it on in the first step that is good otherwise does so
    on purpose, and is not blamed for it later.

    Args:
        module: it and all modules inside are watched, mere containers left out.
    """

    def __init__(self, module: nn.Module) -> None:
        watched = [(n, m) for n, m in module.named_modules() if not isinstance(m, _CONTAINERS)]
        self.names = tuple(name for name, _ in watched)
        device = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))
        self._flags = torch.zeros((len(watched), 2), dtype=torch.bool, device=device)
        self._masking: Tensor | None = None
        self._active = False
        self._handles: list[RemovableHandle] = [
            m.register_forward_hook(_Note(self, i)) for i, (_, m) in enumerate(watched)
        ]

    def begin(self) -> None:
        """A new step: nothing is noted yet, and what modules hand on from here on counts."""
        self._flags.zero_()
        self._active = True

    def end(self) -> None:
        """What modules hand on from here on does not count."""
        self._active = False

    def flag(self) -> Tensor:
        """1.0 where a module is to blame, else 0.0: float32, 0-dim, on the device."""
        return self._blamed().any().float()

    def bad(self) -> tuple[str, ...]:
        """Names of the modules to blame. Waits for the device."""
        return tuple(name for name, bad in zip(self.names, self._blamed().tolist(), strict=True) if bad)

    def learn(self) -> None:
        """The step is good but for what modules handed on: where that is -inf, they do so on purpose."""
        if self._masking is None:
            self._masking = self._flags[:, _NEGATIVE] & ~self._flags[:, _NAN]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def note(self, index: int, output: Any) -> None:
        """Module number `index` hands this on."""
        if self._active:
            map_tensors(lambda t: self._note(index, t), output)

    def _note(self, index: int, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.is_sparse:
            return tensor
        values = tensor.detach()
        if values.is_cpu and not torch.compiler.is_compiling():
            total = values.sum(dtype=torch.float32 if values.dtype.itemsize < 4 else None).item()
            if math.isfinite(total):  # a sum that is not may still be one of finite values
                return tensor
        least, largest = torch.aminmax(values)
        flags = self._flags[index]
        flags[_NAN].logical_or_(~(largest < torch.inf))  # NaN too
        flags[_NEGATIVE].logical_or_(least == -torch.inf)
        return tensor

    def _blamed(self) -> Tensor:
        negative = self._flags[:, _NEGATIVE]
        if self._masking is not None:
            negative = negative & ~self._masking
        return self._flags[:, _NAN] | negative


class _Note:
    """The forward hook of one module: a class, so that a model with it can be copied and pickled."""

    def __init__(self, watch: ActivationWatch, index: int) -> None:
        self._watch, self._index = watch, index

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self._watch.note(self._index, output)
