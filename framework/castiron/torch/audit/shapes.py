"""F340: what goes into and comes out of layers, held against the shapes that are declared."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from castiron.diagnostics import Finding, Place, finding
from castiron.policy.matching import compile_glob
from castiron.torch.audit.recorder import tensors_in
from castiron.training.shapes import Axes, Boundary


class Shapes:
    """Looks at the layers of a model while one step is traced.

    Args:
        declared: glob on module paths ("" is the model itself) → `"batch time -> batch time 128"`.
        batch_size: length of the axis `batch`; None where the batch does not say.
    """

    def __init__(self, declared: Mapping[str, str], batch_size: int | None) -> None:
        self._declared = {path: Boundary.parse(text) for path, text in declared.items()}
        self._axes = Axes({} if batch_size is None else {"batch": batch_size})
        self._waiting: dict[str, None] = {}
        self.findings: list[Finding] = []

    @contextlib.contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Within it the boundaries of the layers are looked at."""
        hooks = []
        for glob, boundary in self._declared.items():
            found = [
                (path, module)
                for path, module in model.named_modules(remove_duplicate=False)
                if compile_glob(glob).fullmatch(path)
            ]
            if not found:
                self.findings.append(
                    finding(
                        "F340",
                        f"shapes are declared for '{glob}', and no layer has this path",
                        place=Place(module=glob),
                        expected="the path of a layer, or a glob",
                        received=f"'{glob}'",
                        remedy="castiron train CONFIG --dry-run shows the paths of all layers. A recipe with "
                        "a model of its own says its shapes itself.",
                        severity="warning",
                    )
                )
            self._waiting.update(dict.fromkeys(path for path, _ in found))
            for path, module in found:
                hooks.append(module.register_forward_pre_hook(self._before(path, boundary), with_kwargs=True))
                hooks.append(module.register_forward_hook(self._after(path, boundary)))
        try:
            yield
            for path in self._waiting:
                self.findings.append(
                    finding(
                        "F340",
                        "shapes are declared for a layer that did not run",
                        place=Place(module=path, phase="forward"),
                        expected="a layer that runs in a training step",
                        received="none of its calls",
                        severity="warning",
                    )
                )
        finally:
            for hook in hooks:
                hook.remove()

    def _before(self, path: str, boundary: Boundary) -> Any:
        def look(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._waiting.pop(path, None)
            self._compare(path, module, "is given", boundary.inputs, (args, tuple(kwargs.values())))

        return look

    def _after(self, path: str, boundary: Boundary) -> Any:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            self._compare(path, module, "hands on", boundary.outputs, output)

        return look

    def _compare(
        self, path: str, module: nn.Module, does: str, declared: tuple[tuple[str, ...], ...], given: Any
    ) -> None:
        shapes = [tuple(t.shape) for t in tensors_in(given)]
        said = f"a {type(module).__name__} {does}"
        if len(shapes) < len(declared):
            self._tell(path, f"{said} {len(shapes)} tensors", str(len(declared)), str(len(shapes)))
            return
        for axes, shape in zip(declared, shapes, strict=False):
            if self._axes.agree(axes, shape):
                continue
            order = self._axes.other_order(axes, shape)
            because = f": its axes look like {order}" if order is not None else ""
            self._tell(
                path,
                f"{said} a tensor of another shape than declared{because}",
                self._axes.resolved(axes),
                str(list(shape)),
            )

    def _tell(self, path: str, message: str, expected: str, received: str) -> None:
        place = Place(module=path, phase="forward")
        self.findings.append(finding("F340", message, place=place, expected=expected, received=received))
