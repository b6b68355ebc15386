"""Which layer an operation is made in: each layer's `call` opens a name scope that says so.

Names reach into the bodies of loops and into gradients, where no call of a layer is running.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from castiron.keras.modules import walk
from castiron.training.audit import Phase
from castiron.training.declared_shapes import DeclaredShapes
from castiron.training.shapes import Shape

_LAYER = re.compile(r"castiron_layer_(\d+)")
_PHASES: tuple[tuple[str, Phase], ...] = (
    ("castiron_optimizer", "optimizer"),
    ("castiron_backward", "backward"),
    ("gradient_tape", "backward"),
)


class Scopes:
    """Numbers the layers of a model, and keeps what each of them hands on."""

    def __init__(self, model: Any, shapes: DeclaredShapes | None = None) -> None:
        self.layers = dict(walk(model))
        """Path → layer."""
        self._paths = list(self.layers)
        self.outputs: list[tuple[str, list[Any]]] = []
        """(path, tensors) of each call of a layer, as they end."""
        self._shapes = shapes
        self._boundaries = {} if shapes is None else dict(shapes.layers(self.layers))

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Within it, every operation that a layer makes carries the layer's number in its name."""
        done: dict[int, tuple[Any, Any]] = {}
        for number, (path, layer) in enumerate(self.layers.items()):
            if id(layer) not in done:
                done[id(layer)] = (layer, layer.__dict__.get("call"))
                layer.__dict__["call"] = self._spied(layer.call, number, path)
        try:
            yield
        finally:
            for layer, before in done.values():
                if before is None:
                    del layer.__dict__["call"]
                else:
                    layer.__dict__["call"] = before

    def _spied(self, call: Any, number: int, path: str) -> Any:
        boundary, kind = self._boundaries.get(path), type(self.layers[path]).__name__

        def spied(*args: Any, **kwargs: Any) -> Any:
            if boundary is not None and self._shapes is not None:
                self._shapes.given(path, kind, boundary, _shapes((args, tuple(kwargs.values()))))
            with tf.name_scope(f"castiron_layer_{number}/"):
                result = call(*args, **kwargs)
            tensors = [t for t in tf.nest.flatten(result) if tf.is_tensor(t)]
            self.outputs.append((path, tensors))
            if boundary is not None and self._shapes is not None:
                self._shapes.handed_on(path, kind, boundary, _shapes(result))
            return result

        return spied

    def module(self, name: str) -> str | None:
        """Path of the innermost layer of an operation of this name."""
        found = _LAYER.findall(name)
        return self._paths[int(found[-1])] if found else None

    def phase(self, name: str) -> Phase:
        """The part of the step that an operation of this name is in."""
        for mark, phase in _PHASES:
            if mark in name:
                return phase
        return "loss" if "castiron_loss" in name and not _LAYER.search(name) else "forward"


def _shapes(given: Any) -> list[Shape]:
    """Of the tensors in it; -1 where a graph leaves a length open."""
    tensors = [t for t in tf.nest.flatten(given) if tf.is_tensor(t) and t.shape.rank is not None]
    return [tuple(-1 if n is None else int(n) for n in t.shape) for t in tensors]
