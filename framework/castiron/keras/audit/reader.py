"""Graphs of TensorFlow, read: every operation, also in the bodies of loops, branches and functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from castiron.keras.audit.flops import count
from castiron.keras.audit.lines import call_of
from castiron.keras.audit.records import Call, LayerOutput, Op, Origin, Trace, Value
from castiron.keras.audit.scopes import Scopes
from castiron.keras.dtypes import dtype_name

_NOBODY = Call("", (), False)
_SKIPPED = frozenset(("Placeholder", "NoOp", "Assert"))


class Reader:
    """Reads the graph of one step.

    Args:
        variables: id of a variable's handle → what it is.
        apart: whether an operation is none of the model's, its loss's or its gradients': told as the
            optimizer's.
    """

    def __init__(
        self,
        scopes: Scopes,
        variables: Mapping[int, Origin],
        apart: Callable[[Any], bool] = lambda node: False,
    ) -> None:
        self._scopes, self._variables, self._apart = scopes, variables, apart
        self._values: dict[tuple[int, str], Value] = {}
        self._by_name: dict[str, Op] = {}
        self._graphs: list[Any] = []
        self.trace = Trace()

    def read(self, graph: Any, given: Mapping[str, Origin]) -> Trace:
        """Read a graph and all that is called in it.

        Args:
            given: name of a placeholder → what it is, for the step's own arguments.
        """
        bound = {}
        for outer, inner in graph.captures:
            origin = self._variables.get(id(outer)) or self._variables.get(getattr(outer, "_id", -1))
            bound[inner.name] = self._outside(inner, origin)
        for tensor in graph.inputs:
            if tensor.name in given:
                bound[tensor.name] = self._outside(tensor, given[tensor.name])
        self._walk(graph, bound, 1, None)
        for path, tensors in self._scopes.outputs:
            values = [v for t in tensors if (v := self.value(t)) is not None]
            if values:
                lines = next((v.maker.lines for v in values if v.maker is not None), ())
                self.trace.outputs.append(LayerOutput(path, values, lines))
        return self.trace

    def value(self, tensor: Any) -> Value | None:
        """What a tensor of one of the graphs is."""
        graph = getattr(tensor, "graph", None)
        return self._values.get((id(graph), tensor.name)) if graph is not None else None

    @staticmethod
    def _outside(tensor: Any, origin: Origin | None) -> Value:
        return Value(dtype_name(tensor.dtype), _shape(tensor), origin=origin or Origin("outside", ""))

    def _walk(self, graph: Any, bound: Mapping[str, Value], times: int, around: Op | None) -> None:
        self._graphs.append(graph)  # an id must not be given twice
        key = id(graph)
        for node in graph.get_operations():
            if node.type == "Placeholder":
                tensor = node.outputs[0]
                self._values[key, tensor.name] = bound.get(tensor.name) or self._outside(tensor, None)
                continue
            operands = [self._values[key, t.name] for t in node.inputs if (key, t.name) in self._values]
            if node.type == "ReadVariableOp" and operands and operands[0].origin is not None:
                tensor = node.outputs[0]
                known = Value(dtype_name(tensor.dtype), _shape(tensor), origin=operands[0].origin)
                self._values[key, tensor.name] = known
                continue
            if node.type in _SKIPPED:
                continue
            op = self._note(node, operands, times, around)
            for tensor in node.outputs:
                value = Value(dtype_name(tensor.dtype), _shape(tensor), op)
                op.results.append(value)
                self._values[key, tensor.name] = value
            op.flops = count(op)
            inner = list(_functions(node, graph))
            for function, body in inner:
                self._enter(node, op, function, body, times)

    def _note(self, node: Any, operands: list[Value], times: int, around: Op | None) -> Op:
        name = node.name
        phase = self._scopes.phase(name)
        module = self._scopes.module(name)
        within = around is not None and around.phase == "optimizer"
        if within or (phase != "backward" and self._apart(node)):
            phase = "optimizer"
        if around is not None:
            phase = around.phase if phase == "forward" else phase
            module = module if module is not None else around.module
        op = Op(
            index=len(self.trace.ops),
            node=node,
            name=node.type,
            phase=phase,
            module=module,
            call=_NOBODY if phase == "optimizer" else call_of(node),
            operands=operands,
            results=[],
            times=times,
        )
        if phase == "backward":
            op.forward = self._forward(name)
            if op.forward is not None and op.module is None:
                op.module = op.forward.module
        else:
            self._by_name.setdefault(name, op)
        for value in operands:
            value.consumers.append(op)
        self.trace.ops.append(op)
        return op

    def _forward(self, name: str) -> Op | None:
        """The operation of the forward pass that one of the backward pass is named after."""
        for mark in ("gradients/", "gradient_tape/"):
            rest = name.rpartition(mark)[2] if mark in name else ""
            while rest:
                found = self._by_name.get(rest) or self._by_name.get(rest.removesuffix("_grad"))
                if found is not None:
                    return found
                rest = rest.rpartition("/")[0]
        return None

    def _enter(self, node: Any, op: Op, attribute: str, body: Any, times: int) -> None:
        """Read the function of an operation; its arguments are the operation's operands."""
        operands = list(node.inputs)
        if attribute != "f" and attribute != "body":
            operands = operands[1:]  # what is branched on
        key = id(node.graph)
        bound: dict[str, Value] = {}
        for outer, inner in zip(operands, body.inputs, strict=False):
            value = self._values.get((key, outer.name))
            if value is None:
                continue
            if attribute == "body" and value.dtype != "resource":
                # What goes round a loop is a value of its own: it may change. Its format cannot.
                value = Value(
                    value.dtype, _shape(inner), value.maker, value.origin, consumers=value.consumers
                )
            bound[inner.name] = value
        if attribute == "body":
            times *= _trips(node)
        self._walk(body, bound, times, op)
        for result, inner in zip(op.results, body.outputs, strict=False):
            found = self._values.get((id(body), inner.name))
            if found is not None:
                result.same = (*result.same, found)


def _functions(node: Any, graph: Any) -> Iterator[tuple[str, Any]]:
    names: list[tuple[str, Any]] = []
    if node.type in ("While", "StatelessWhile"):
        names = [("body", node.get_attr("body"))]
    elif node.type in ("If", "StatelessIf"):
        names = [(k, node.get_attr(k)) for k in ("then_branch", "else_branch")]
    elif node.type in ("Case", "StatelessCase"):
        names = [("branch", f) for f in node.get_attr("branches")]
    elif node.type in ("PartitionedCall", "StatefulPartitionedCall"):
        names = [("f", node.get_attr("f"))]
    for attribute, function in names:
        found = _find(graph, function.name)
        body = getattr(found, "graph", None)
        if body is not None:
            yield attribute, body


def _find(graph: Any, name: str) -> Any:
    while graph is not None:
        if (found := graph._get_function(name)) is not None:
            return found
        graph = getattr(graph, "outer_graph", None)
    return None


def _trips(node: Any) -> int:
    """How often a loop goes round, where it says so itself (`maximum_iterations`)."""
    if len(node.inputs) < 2 or not node.inputs[1].dtype.is_integer or node.inputs[1].shape.rank != 0:
        return 1
    most = node.inputs[1]
    if most.op.type == "Max":  # Keras's recurrent layers take the largest of one length
        most = most.op.inputs[0]
    value = tf.get_static_value(most)
    return max(int(np.max(value)), 1) if value is not None and np.size(value) else 1


def _shape(tensor: Any) -> tuple[int, ...]:
    if tensor.shape.rank is None:
        return ()
    return tuple(-1 if n is None else int(n) for n in tensor.shape)
