"""How far an eager step has come: in which layer it is, at which time step, in which phase.

Layers, tapes and optimizers say when they are entered and left. What runs outside of layers is the loss,
unless another layer follows before the gradients are taken. Behind the gradients comes the optimizer's part,
and behind that what the step tells of itself; a new tape, or a layer, begins anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from castiron.keras.replay.calls import Call
from castiron.training.incident import Phase


class Course:
    """Where a step is.

    Args:
        layers: (path, layer) of the model.
        optimizers: name → optimizer, of a step that applies its gradients itself; None: what is recorded ends
            with the gradients.
    """

    def __init__(
        self, layers: Sequence[tuple[str, Any]], optimizers: Mapping[str, Any] | None = None
    ) -> None:
        self._layers, self._optimizers = layers, optimizers
        self.phase: Literal["forward", "loss", "backward", "optimizer"] = "forward"
        """Of what runs outside of layers; a loss is told from forward by what follows."""
        self.optimizer: str | None = None
        """The optimizer that is at work, with its name where there are several."""
        self._stack: list[str] = []
        self._steps: list[int | None] = []
        self._counts: dict[str, int] = {}
        self._tapes: set[int] = set()
        self._left_a_layer = self._left_the_model = False
        self._open: list[Call] = []

    @property
    def module(self) -> str | None:
        """Path of the innermost layer."""
        return self._stack[-1] if self._stack else None

    @property
    def time_step(self) -> int | None:
        """Of the innermost recurrent cell."""
        return next((s for s in reversed(self._steps) if s is not None), None)

    def phase_now(self) -> Phase:
        """Of an operation that runs now."""
        if self.phase != "forward" or self._stack:
            return self.phase
        return "loss" if self._left_a_layer else "forward"

    def note(self, call: Call) -> None:
        """An operation ran."""
        if call.phase == "loss" and not self._left_the_model:
            self._open.append(call)

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        """Within it, layers, tapes and optimizers say where the step is."""
        with contextlib.ExitStack() as stack:
            for path, layer in self._layers:
                stack.enter_context(_replaced(layer, "call", self._calling(path, layer)))
            for name, optimizer in (self._optimizers or {}).items():
                stack.enter_context(_replaced(optimizer, "apply", self._applying(name, optimizer)))
            stack.enter_context(self._tapes_followed())
            yield

    # --- layers --------------------------------------------------------------------------------------

    def _calling(self, path: str, layer: Any) -> Any:
        call = layer.call
        cell = hasattr(layer, "state_size") and not isinstance(layer, keras.layers.RNN)

        def followed(*args: Any, **kwargs: Any) -> Any:
            step = None
            if cell:
                step = self._counts.get(path, 0)
                self._counts[path] = step + 1
            elif isinstance(layer, keras.layers.RNN):
                # Keras runs a cell once beforehand, to see what it gives, unless it is unrolled.
                self._counts[f"{path}.cell"] = 0 if layer.unroll else -1
            if not self._stack:
                self._enter_a_layer()
            self._stack.append(path)
            self._steps.append(None if step is None else max(step, 0))
            try:
                return call(*args, **kwargs)
            finally:
                self._stack.pop()
                self._steps.pop()
                self._left_a_layer = True
                self._left_the_model |= path == ""

        return followed

    def _enter_a_layer(self) -> None:
        if self.phase in ("loss", "optimizer"):
            self._begin()
        elif not self._left_the_model:
            for call in self._open:
                call.phase = "forward"
            self._open.clear()

    def _begin(self) -> None:
        """Another forward pass."""
        self.phase = "forward"
        self._left_a_layer = self._left_the_model = False
        self._open.clear()

    # --- tapes and optimizers ------------------------------------------------------------------------

    @contextlib.contextmanager
    def _tapes_followed(self) -> Iterator[None]:
        tape = tf.GradientTape
        enter, leave, gradient = tape.__enter__, tape.__exit__, tape.gradient

        def entered(own: Any) -> Any:
            if not self._tapes and self.phase in ("loss", "optimizer") and self.optimizer is None:
                self._begin()
            self._tapes.add(id(own))
            return enter(own)

        def left(own: Any, *error: Any) -> Any:
            self._tapes.discard(id(own))
            return leave(own, *error)

        def taken(own: Any, *args: Any, **kwargs: Any) -> Any:
            before, self.phase = self.phase, "backward"
            try:
                return gradient(own, *args, **kwargs)
            finally:
                # A gradient that another tape records is a part of a loss.
                inner = self._tapes - {id(own)}
                self.phase = before if self._optimizers is None or inner else "optimizer"

        tape.__enter__, tape.__exit__, tape.gradient = entered, left, taken
        try:
            yield
        finally:
            tape.__enter__, tape.__exit__, tape.gradient = enter, leave, gradient

    def _applying(self, name: str, optimizer: Any) -> Any:
        apply = optimizer.apply

        def followed(*args: Any, **kwargs: Any) -> Any:
            outer, self.optimizer, self.phase = self.optimizer, name, "optimizer"
            try:
                return apply(*args, **kwargs)
            finally:
                self.optimizer, self.phase = outer, "loss"

        return followed


@contextlib.contextmanager
def _replaced(owner: Any, name: str, function: Any) -> Iterator[None]:
    """Within it, an object has this function for a method."""
    before = owner.__dict__.get(name)
    owner.__dict__[name] = function
    try:
        yield
    finally:
        if before is None:
            del owner.__dict__[name]
        else:
            owner.__dict__[name] = before
