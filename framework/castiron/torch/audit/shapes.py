"""The boundaries of a model's layers while one step is traced, for the shapes that are declared (F340)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from castiron.torch.audit.recorder import tensors_in
from castiron.training.declared_shapes import DeclaredShapes
from castiron.training.shapes import Boundary, Shape


class Shapes(DeclaredShapes):
    """Looks at the layers of a model while one step is traced."""

    @contextlib.contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Within it the boundaries of the layers are looked at."""
        modules = dict(model.named_modules(remove_duplicate=False))
        hooks = []
        for path, boundary in self.layers(modules):
            before, after = self._before(path, boundary), self._after(path, boundary)
            hooks.append(modules[path].register_forward_pre_hook(before, with_kwargs=True))
            hooks.append(modules[path].register_forward_hook(after))
        try:
            yield
            self.over()
        finally:
            for hook in hooks:
                hook.remove()

    def _before(self, path: str, boundary: Boundary) -> Any:
        def look(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.given(path, type(module).__name__, boundary, _shapes((args, tuple(kwargs.values()))))

        return look

    def _after(self, path: str, boundary: Boundary) -> Any:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            self.handed_on(path, type(module).__name__, boundary, _shapes(output))

        return look


def _shapes(given: Any) -> list[Shape]:
    return [tuple(t.shape) for t in tensors_in(given)]
