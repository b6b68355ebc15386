"""Every operation of an eager step, and which of them first gave something that is not finite.

TensorFlow calls `op_callback` after each operation, forward and backward. Gradients are judged at the
boundary of the forward operation that they belong to: what is not finite inside a gradient's formula, and
does not leave it, is nobody's fault.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import backprop
from tensorflow.python.framework import op_callbacks

from castiron.keras.modules import walk
from castiron.keras.replay.calls import ASSIGNS, MOVES, Call, Evidence, Origin, Value
from castiron.keras.replay.compiled import under_xla
from castiron.keras.replay.course import Course
from castiron.keras.replay.events import POLES, backward_event, forward_event
from castiron.keras.replay.sources import lines_running
from castiron.keras.replay.values import State, bad_along, state_of, statistics
from castiron.training.incident import Event
from castiron.training.source_lines import Line

_NAMES = ("input", "other", "third", "fourth", "fifth")
_RANDOM = frozenset(
    {
        "Multinomial", "ParameterizedTruncatedNormal", "RandomGamma", "RandomPoissonV2", "RandomShuffle",
        "RandomStandardNormal", "RandomUniform", "RandomUniformInt", "TruncatedNormal",
    }
)  # fmt: skip
"""Operations of `tf.random` whose state is the process's."""


class Recorder:
    """What happened in one eager forward and backward pass.

    Args:
        variables: tf.Variable → (kind, name), of everything that the step reads.
        batch: the batch's tensors, by name, with their states.
        rows: rows of the batch.
        xla: compile the gradients of operations with poles, as in the step. Some of TensorFlow's own kernels
            for them (of sqrt, for one) say that 0 · inf is 0; XLA's formula says NaN.
        optimizers: name → optimizer, of a step that applies its gradients itself.
    """

    def __init__(
        self,
        model: Any,
        variables: Mapping[int, tuple[Origin, Any]],
        batch: Mapping[str, tuple[Any, State]],
        rows: int | None,
        *,
        xla: bool = False,
        optimizers: Mapping[str, Any] | None = None,
    ) -> None:
        self._xla = xla
        layers = {id(layer): (path, layer) for path, layer in reversed(list(walk(model)))}
        self.course = Course(list(layers.values()), optimizers)
        self.rows = rows
        self.constant: Any = None
        """The first constant that was NaN."""
        self.random: dict[str, tuple[Line, ...]] = {}
        """Operations that draw random numbers from a state that nobody can put back, with a line of each."""
        self._values: dict[int, Value] = {}
        self._handles: dict[int, Value] = {}
        self._handle_names: dict[int, str] = {}
        self._names: dict[int, str] = {}
        for origin, variable in variables.values():
            state = state_of(variable.read_value(), masks=origin.kind == "buffer")
            self._handles[variable.handle._id] = Value(state, origin)
            self._handle_names[variable.handle._id] = origin.name
        for name, (tensor, state) in batch.items():
            self._values[tensor._id] = Value(state, Origin("batch", name))
            self._names[tensor._id] = name
        self._made: dict[int, Call] = {}
        self._used: dict[tuple[str, int], Call] = {}
        self._alive: list[Any] = []
        self._turns: dict[tuple[str, str | None, int], int] = {}
        self._number = 0
        self._inside = 0

    # --- what is asked afterwards --------------------------------------------------------------------

    def value_of(self, tensor: Any) -> Value:
        """State of a tensor, and what made it."""
        if isinstance(tensor, tf.IndexedSlices):
            tensor = tensor.values
        found = self._values.get(tensor._id)
        return found or Value(state_of(tensor, masks=True), None)

    def value_in(self, variable: Any) -> Value:
        """State of what stands in a variable now, and what wrote it."""
        found = self._handles.get(variable.handle._id)
        return found or Value(state_of(variable.read_value(), masks=True), None)

    def is_bad_in(self, variable: Any) -> bool:
        """Whether something bad was written into a variable."""
        found = self._handles.get(variable.handle._id)
        return found is not None and found.state is State.BAD and isinstance(found.source, Call)

    # --- recording -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Within it, everything that runs eagerly in this thread is recorded."""
        was_eager = tf.config.functions_run_eagerly()
        original = backprop._gradient_function
        tf.config.run_functions_eagerly(True)
        pywrap_tfe.TFE_Py_RegisterGradientFunction(self._gradient_of(original))
        op_callbacks.add_op_callback(self._see)
        try:
            with self.course.followed():
                yield
        finally:
            op_callbacks.remove_op_callback(self._see)
            pywrap_tfe.TFE_Py_RegisterGradientFunction(original)
            tf.config.run_functions_eagerly(was_eager)

    def _see(
        self, op_type: Any, inputs: Any, attrs: Any, outputs: Any, op_name: Any = None, graph: Any = None
    ) -> None:
        if self._inside or graph is not None:
            return
        op = op_type.decode() if isinstance(op_type, bytes) else str(op_type)
        self._inside += 1
        try:
            self._note(op, list(inputs), list(outputs))
        finally:
            self._inside -= 1

    def _note(self, op: str, inputs: list[Any], outputs: list[Any]) -> None:
        self._alive += [*inputs, *outputs]  # an id must not be given twice
        if op in ASSIGNS:
            self._assigned(op, inputs)
            return
        call = self._call(op)
        if op in _RANDOM:
            self.random.setdefault(op, call.lines)
        for tensor in inputs:
            if hasattr(tensor, "_id"):
                self._used[op, tensor._id] = call
        self._made |= {t._id: call for t in outputs if hasattr(t, "_id")}
        values = [self._read(t) for t in inputs]
        for out in outputs:
            self._judge(call, op, inputs, values, out, outputs)

    def _judge(
        self, call: Call, op: str, inputs: list[Any], values: list[Value], out: Any, outputs: list[Any]
    ) -> None:
        state = state_of(out, masks=True)
        if state is State.GOOD:
            return
        bad = [v for v in values if v.state is State.BAD]
        masked = [v for v in values if v.state is State.MASKED]
        if bad:
            call.parents = [v.source for v in bad if v.source is not None]
            self._values[out._id] = Value(State.BAD, call)
            return
        if op in MOVES or op == "ReadVariableOp" or (masked and state is State.MASKED):
            # An infinity that was put there is only handed on; a scalar for `Fill` is put there here.
            self._values[out._id] = Value(state if masked or op in MOVES else State.BAD, call)
            call.parents = [v.source for v in masked if v.source is not None]
            return
        self._values[out._id] = Value(State.BAD, call)
        if call.evidence is None:
            results = [t for t in outputs if state_of(t, masks=True) is not State.GOOD]
            self._convict(call, forward_event(op, inputs, results), inputs, results)

    def _convict(self, call: Call, event: Event, operands: list[Any], results: list[Any]) -> None:
        shown = [
            (self._name_of(t, i), t)
            for i, t in enumerate(operands)
            if hasattr(t, "_id") and t.dtype != tf.resource and t.dtype != tf.variant
        ]
        call.evidence = Evidence(
            event,
            tuple(statistics(name, t) for name, t in shown),
            tuple(
                statistics("result" if len(results) == 1 else f"result {i}", t) for i, t in enumerate(results)
            ),
            self._rows_of(results),
        )

    def _name_of(self, tensor: Any, i: int) -> str:
        """The field of the batch, or which operand it is and what made it."""
        if field := self._names.get(tensor._id):
            return field
        name = _NAMES[i] if i < len(_NAMES) else str(i)
        made = self._made.get(tensor._id)
        return name if made is None else f"{name} ({made.op})"

    def _rows_of(self, results: list[Any]) -> list[int] | None:
        for tensor in results if self.rows is not None else ():
            for dim in (0, 1):
                if tensor.shape.rank > dim and tensor.shape[dim] == self.rows:
                    return bad_along(tensor, dim)
        return None

    def _read(self, tensor: Any) -> Value:
        if not hasattr(tensor, "_id"):
            return Value(State.GOOD, None)
        if tensor.dtype == tf.resource:
            return self._handles.get(tensor._id, Value(State.GOOD, None))
        known = self._values.get(tensor._id)
        if known is not None:
            return known
        state = state_of(tensor, masks=True)
        if state is State.GOOD or tensor._id in self._made:
            return Value(state, self._made.get(tensor._id))
        # A constant. Infinity was put there on purpose; NaN is nobody's purpose.
        if state is State.BAD and self.constant is None:
            self.constant = tensor
        return Value(state, Origin("unknown", "a constant"))

    def _assigned(self, op: str, inputs: list[Any]) -> None:
        handle, value = inputs[0], self._read(inputs[-1])
        if op == "AssignVariableOp":
            self._handles[handle._id] = value
            return
        if not inputs[-1].dtype.is_floating:
            return
        before = self._handles.get(handle._id, Value(State.GOOD, None))
        bad = [v for v in (value, before) if v.state is State.BAD]
        after = tf.raw_ops.ReadVariableOp(resource=handle, dtype=inputs[-1].dtype)
        if not bad and state_of(after, masks=True) is State.GOOD:
            return
        call = self._call(op)
        call.parents = [v.source for v in bad if v.source]
        if not bad:
            self._convict(call, "overflow", [inputs[-1]], [after])
        self._handles[handle._id] = Value(State.BAD, call)

    def _call(self, op: str) -> Call:
        self._number += 1
        course = self.course
        module = course.module
        lines, place = lines_running(3)
        turn = self._turns[op, module, place] = self._turns.get((op, module, place), -1) + 1
        step = course.time_step
        call = Call(
            self._number,
            op,
            course.phase_now(),
            module,
            lines,
            (turn or None) if step is None else step,
            course.optimizer,
        )
        course.note(call)
        return call

    # --- gradients -----------------------------------------------------------------------------------

    def _gradient_of(self, original: Any) -> Any:
        def gradient(
            op_name: Any,
            attrs: Any,
            count: Any,
            inputs: Any,
            outputs: Any,
            out_grads: Any,
            skip: Any,
            scope: Any,
        ) -> Any:
            self._inside += 1
            try:
                arguments = (op_name, attrs, count, inputs, outputs, out_grads, skip, scope)
                if self._xla and str(op_name) in POLES:
                    results = under_xla(lambda: original(*arguments))
                else:
                    results = original(*arguments)
                self._note_gradient(str(op_name), inputs, outputs, out_grads, results)
            finally:
                self._inside -= 1
            return results

        return gradient

    def _note_gradient(self, op: str, inputs: Any, outputs: Any, out_grads: Any, results: Any) -> None:
        saved = [t for t in (*_eager(inputs), *_eager(outputs)) if t.dtype != tf.resource]
        incoming, outgoing = _eager(out_grads), _eager(results)
        self._alive += [*saved, *incoming, *outgoing]
        bad = [t for t in outgoing if state_of(t, masks=False) is State.BAD]
        if not bad:
            return
        owner = self._owner(op, inputs, outputs)
        call = Call(
            self._next(),
            f"{op}Grad",
            "backward",
            owner.module if owner else None,
            owner.lines if owner else (),
            owner.time_index if owner else None,
        )
        causes = [v for v in map(self._read, incoming) if v.state is not State.GOOD]
        causes = causes or [v for v in map(self._read, saved) if v.state is State.BAD]
        call.parents = [v.source for v in causes if v.source is not None]
        if not causes and owner is not None and owner.evidence is not None:
            # Going forward it was bad already, and hidden: `where(x > 0, log(x), 0)`.
            call.parents = [owner]
        elif not causes:
            self._convict(call, backward_event(op, incoming, bad, saved), [*incoming, *saved], bad)
        for tensor in bad:
            self._values[tensor._id] = Value(State.BAD, call)

    def _owner(self, op: str, inputs: Any, outputs: Any) -> Call | None:
        """The forward operation that a gradient belongs to."""
        for tensor in _eager(outputs):
            if found := self._made.get(tensor._id):
                return found
        for tensor in _eager(inputs):
            if found := self._used.get((op, tensor._id)):
                return found
        return None

    def _next(self) -> int:
        self._number += 1
        return self._number


def _eager(tree: Any) -> list[Any]:
    found = []
    for leaf in tf.nest.flatten(tree):
        tensor = leaf.values if isinstance(leaf, tf.IndexedSlices) else leaf
        if hasattr(tensor, "_id") and hasattr(tensor, "numpy"):
            found.append(tensor)
    return found
