"""Every operation of an eager step, and which of them first gave something that is not finite.

TensorFlow calls `op_callback` after each operation, forward and backward. Gradients are judged at the
boundary of the forward operation that they belong to: what is not finite inside a gradient's formula, and
does not leave it, is nobody's fault.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import keras
import tensorflow as tf
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import backprop
from tensorflow.python.framework import op_callbacks

from castiron.keras.modules import walk
from castiron.keras.replay.events import POLES, backward_event, forward_event
from castiron.keras.replay.sources import lines_running
from castiron.keras.replay.values import State, bad_along, state_of, statistics
from castiron.training.incident import Event, Phase, TensorStatistics
from castiron.training.source_lines import Line

MOVES = frozenset(
    {
        "BroadcastTo", "Concat", "ConcatV2", "ExpandDims", "Fill", "Gather", "GatherNd", "GatherV2",
        "Identity", "IdentityN", "MirrorPad", "OnesLike", "Pack", "Pad", "PadV2", "Reshape",
        "ResourceGather", "Reverse", "ReverseSequence", "ReverseV2", "Roll", "ScatterNd", "Select",
        "SelectV2", "Slice", "Split", "SplitV", "Squeeze", "StopGradient", "StridedSlice",
        "TensorListFromTensor", "TensorListGetItem", "TensorListSetItem", "TensorListStack",
        "TensorScatterUpdate", "Tile", "Transpose", "Unpack", "ZerosLike", "EnsureShape", "Snapshot",
        "PreventGradient", "Copy", "Where", "BatchToSpaceND", "SpaceToBatchND",
    }
)  # fmt: skip
"""Operations that move values and make none."""
GATHERS = frozenset({"Gather", "GatherNd", "GatherV2", "ResourceGather", "ResourceGatherNd"})
"""Operations that look rows up in a table."""
_NAMES = ("input", "other", "third", "fourth", "fifth")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value that was there before the first operation comes from."""

    kind: Literal["batch", "parameter", "buffer", "unknown"]
    name: str


@dataclass(slots=True, eq=False)
class Evidence:
    """What an operation got and gave."""

    event: Event
    operands: tuple[TensorStatistics, ...]
    results: tuple[TensorStatistics, ...]
    rows: list[int] | None
    """Rows of the batch whose results are bad; None where results have no dimension of rows."""


@dataclass(slots=True, eq=False)
class Call:
    """An operation that ran, or the gradient of one."""

    index: int
    op: str
    phase: Phase
    module: str | None
    lines: tuple[Line, ...]
    time_index: int | None = None
    """Time step of a recurrent layer, or turn of a loop, from 0; None where nothing came round."""
    parents: list[Call | Origin] = field(default_factory=list)
    """What its bad operands came from."""
    evidence: Evidence | None = None
    """Where it made something bad of good operands."""


@dataclass(slots=True, eq=False)
class _Value:
    state: State
    source: Call | Origin | None


class Recorder:
    """What happened in one eager forward and backward pass.

    Args:
        variables: tf.Variable → (kind, name), of everything that the step reads.
        batch: the batch's tensors, by name, with their states.
        rows: rows of the batch.
        xla: compile the gradients of operations with poles, as in the step. Some of TensorFlow's own kernels
            for them (of sqrt, for one) say that 0 · inf is 0; XLA's formula says NaN.
    """

    def __init__(
        self,
        model: Any,
        variables: Mapping[int, tuple[Origin, Any]],
        batch: Mapping[str, tuple[Any, State]],
        rows: int | None,
        *,
        xla: bool = False,
    ) -> None:
        self._xla = xla
        self._layers = {id(layer): (path, layer) for path, layer in reversed(list(walk(model)))}
        self.rows = rows
        self.constant: Any = None
        """The first constant that was NaN."""
        self._values: dict[int, _Value] = {}
        self._handles: dict[int, _Value] = {}
        self._handle_names: dict[int, str] = {}
        self._names: dict[int, str] = {}
        for origin, variable in variables.values():
            state = state_of(variable.read_value(), masks=origin.kind == "buffer")
            self._handles[variable.handle._id] = _Value(state, origin)
            self._handle_names[variable.handle._id] = origin.name
        for name, (tensor, state) in batch.items():
            self._values[tensor._id] = _Value(state, Origin("batch", name))
            self._names[tensor._id] = name
        self._made: dict[int, Call] = {}
        self._used: dict[tuple[str, int], Call] = {}
        self._alive: list[Any] = []
        self._stack: list[str] = []
        self._counts: dict[str, int] = {}
        self._steps: list[int | None] = []
        self._turns: dict[tuple[str, str | None, int], int] = {}
        self._number = 0
        self._inside = 0
        self._model_done = False
        self.phase: Literal["forward", "backward", "optimizer"] = "forward"

    # --- what is asked afterwards --------------------------------------------------------------------

    def value_of(self, tensor: Any) -> _Value:
        """State of a tensor, and what made it."""
        if isinstance(tensor, tf.IndexedSlices):
            tensor = tensor.values
        found = self._values.get(tensor._id)
        return found or _Value(state_of(tensor, masks=True), None)

    def value_in(self, variable: Any) -> _Value:
        """State of what stands in a variable now, and what wrote it."""
        found = self._handles.get(variable.handle._id)
        return found or _Value(state_of(variable.read_value(), masks=True), None)

    # --- recording -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Within it, everything that runs eagerly in this thread is recorded."""
        spies = [_Spy(self, path, layer) for path, layer in self._layers.values()]
        was_eager = tf.config.functions_run_eagerly()
        original = backprop._gradient_function
        tf.config.run_functions_eagerly(True)
        pywrap_tfe.TFE_Py_RegisterGradientFunction(self._gradient_of(original))
        op_callbacks.add_op_callback(self._see)
        try:
            yield
        finally:
            op_callbacks.remove_op_callback(self._see)
            pywrap_tfe.TFE_Py_RegisterGradientFunction(original)
            tf.config.run_functions_eagerly(was_eager)
            for spy in spies:
                spy.remove()

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
        if op in ("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp"):
            self._assigned(op, inputs)
            return
        call = self._call(op)
        for tensor in inputs:
            if hasattr(tensor, "_id"):
                self._used[op, tensor._id] = call
        self._made |= {t._id: call for t in outputs if hasattr(t, "_id")}
        values = [self._read(t) for t in inputs]
        for out in outputs:
            self._judge(call, op, inputs, values, out, outputs)

    def _judge(
        self, call: Call, op: str, inputs: list[Any], values: list[_Value], out: Any, outputs: list[Any]
    ) -> None:
        state = state_of(out, masks=True)
        if state is State.GOOD:
            return
        bad = [v for v in values if v.state is State.BAD]
        masked = [v for v in values if v.state is State.MASKED]
        if bad:
            call.parents = [v.source for v in bad if v.source is not None]
            self._values[out._id] = _Value(State.BAD, call)
            return
        if op in MOVES or op == "ReadVariableOp" or (masked and state is State.MASKED):
            # An infinity that was put there is only handed on; a scalar for `Fill` is put there here.
            self._values[out._id] = _Value(state if masked or op in MOVES else State.BAD, call)
            call.parents = [v.source for v in masked if v.source is not None]
            return
        self._values[out._id] = _Value(State.BAD, call)
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

    def _read(self, tensor: Any) -> _Value:
        if not hasattr(tensor, "_id"):
            return _Value(State.GOOD, None)
        if tensor.dtype == tf.resource:
            return self._handles.get(tensor._id, _Value(State.GOOD, None))
        known = self._values.get(tensor._id)
        if known is not None:
            return known
        state = state_of(tensor, masks=True)
        if state is State.GOOD or tensor._id in self._made:
            return _Value(state, self._made.get(tensor._id))
        # A constant. Infinity was put there on purpose; NaN is nobody's purpose.
        if state is State.BAD and self.constant is None:
            self.constant = tensor
        return _Value(state, Origin("unknown", "a constant"))

    def _assigned(self, op: str, inputs: list[Any]) -> None:
        handle, value = inputs[0], self._read(inputs[1])
        before = self._handles.get(handle._id, _Value(State.GOOD, None))
        if op == "AssignVariableOp":
            self._handles[handle._id] = value
        elif value.state is State.BAD or before.state is State.BAD:
            call = self._call(op)
            call.parents = [v.source for v in (value, before) if v.source and v.state is State.BAD]
            self._handles[handle._id] = _Value(State.BAD, call)

    def _call(self, op: str) -> Call:
        self._number += 1
        module = self._stack[-1] if self._stack else None
        lines, place = lines_running(3)
        turn = self._turns[op, module, place] = self._turns.get((op, module, place), -1) + 1
        step = next((s for s in reversed(self._steps) if s is not None), turn or None)
        return Call(
            self._number,
            op,
            self._phase(module),
            module,
            lines,
            step,
        )

    def _phase(self, module: str | None) -> Phase:
        if self.phase != "forward":
            return self.phase
        return "forward" if module is not None or not self._model_done else "loss"

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
                    results = _compiled(lambda: original(*arguments))
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
            self._values[tensor._id] = _Value(State.BAD, call)

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


class _Spy:
    """Tells a recorder when a layer is entered and left."""

    def __init__(self, recorder: Recorder, path: str, layer: Any) -> None:
        self._layer = layer
        self._before = layer.__dict__.get("call")
        call = layer.call
        cell = hasattr(layer, "state_size") and not isinstance(layer, keras.layers.RNN)

        def spied(*args: Any, **kwargs: Any) -> Any:
            step = None
            if cell:
                step = recorder._counts.get(path, 0)
                recorder._counts[path] = step + 1
            elif isinstance(layer, keras.layers.RNN):
                # Keras runs a cell once beforehand, to see what it gives, unless it is unrolled.
                recorder._counts[f"{path}.cell"] = 0 if layer.unroll else -1
            recorder._stack.append(path)
            recorder._steps.append(None if step is None else max(step, 0))
            try:
                return call(*args, **kwargs)
            finally:
                recorder._stack.pop()
                recorder._steps.pop()
                if path == "":
                    recorder._model_done = True

        layer.__dict__["call"] = spied

    def remove(self) -> None:
        if self._before is None:
            del self._layer.__dict__["call"]
        else:
            self._layer.__dict__["call"] = self._before


def _compiled(run: Any) -> Any:
    """What a function gives under XLA; None where it gives None."""
    given: list[bool] = []
    single: list[bool] = []

    @tf.function(jit_compile=True, autograph=False)
    def compiled() -> list[Any]:
        results = run()
        single[:] = [tf.is_tensor(results)]
        results = [results] if single[0] else results
        given[:] = [r is not None for r in results]
        return [tf.convert_to_tensor(r) for r in results if r is not None]

    tf.config.run_functions_eagerly(False)
    try:
        found = iter(compiled())
    finally:
        tf.config.run_functions_eagerly(True)
    gave = [next(found) if there else None for there in given]
    return gave[0] if single[0] else gave


def _eager(tree: Any) -> list[Any]:
    found = []
    for leaf in tf.nest.flatten(tree):
        tensor = leaf.values if isinstance(leaf, tf.IndexedSlices) else leaf
        if hasattr(tensor, "_id") and hasattr(tensor, "numpy"):
            found.append(tensor)
    return found
