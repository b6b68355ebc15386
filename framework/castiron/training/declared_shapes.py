"""F340: what goes into and comes out of layers, held against the shapes that are declared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from castiron.diagnostics import Finding, Place, finding
from castiron.policy.matching import compile_glob
from castiron.training.shapes import Axes, Boundary, Shape


class DeclaredShapes:
    """What is declared for the layers of a model, and what was found while one step was traced.

    Args:
        declared: glob on layers' paths ("" is the model itself) → `"batch time -> batch time 128"`.
        batch_size: length of the axis `batch`; None where the batch does not say.
    """

    def __init__(self, declared: Mapping[str, str], batch_size: int | None) -> None:
        self._declared = {path: Boundary.parse(text) for path, text in declared.items()}
        self._axes = Axes({} if batch_size is None else {"batch": batch_size})
        self._waiting: dict[str, None] = {}
        self.findings: list[Finding] = []

    def layers(self, paths: Iterable[str]) -> list[tuple[str, Boundary]]:
        """The layers that something is declared for. A declaration that meets none is told."""
        known, matched = list(paths), []
        for glob, boundary in self._declared.items():
            found = [path for path in known if compile_glob(glob).fullmatch(path)]
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
            self._waiting.update(dict.fromkeys(found))
            matched += [(path, boundary) for path in found]
        return matched

    def given(self, path: str, kind: str, boundary: Boundary, shapes: Sequence[Shape]) -> None:
        """A layer of this type is called with these tensors."""
        self._waiting.pop(path, None)
        self._compare(path, f"a {kind} is given", boundary.inputs, shapes)

    def handed_on(self, path: str, kind: str, boundary: Boundary, shapes: Sequence[Shape]) -> None:
        """A layer of this type has given these tensors."""
        self._compare(path, f"a {kind} hands on", boundary.outputs, shapes)

    def over(self) -> None:
        """The step is traced: a layer that did not run is told."""
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

    def _compare(
        self, path: str, said: str, declared: tuple[tuple[str, ...], ...], shapes: Sequence[Shape]
    ) -> None:
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
