"""Boundaries of layers: what goes in and comes out has the formats of the plan.

Keras casts what enters a layer to its compute format, and hands on what the layer's `call` returned. A layer
gets a boundary only where its row of the plan says something else: another output format, inputs that the
layer (autocast off) would leave as they are, a softmax that is to stay wide. The boundary takes the place of
`call` on the instance; saving and cloning never see it, and `remove` puts things back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from castiron.keras.dtypes import is_float, tensorflow_name
from castiron.keras.modules import ACTIVATION, family, softmax_inside, walk
from castiron.policy import Plan, PlanRow


class Boundary:
    """The `call` of a layer, with floating-point inputs and outputs cast.

    Args:
        inputs: format of the arguments; None leaves them to Keras.
        output: format of the results; None leaves them as they are.
        softmax: format of the softmax that the layer applies itself; None leaves it alone.
        scores: format of attention scores, and so of the softmax over them; None leaves them alone.
    """

    def __init__(
        self,
        layer: Any,
        *,
        inputs: str | None = None,
        output: str | None = None,
        softmax: str | None = None,
        scores: str | None = None,
    ) -> None:
        self.layer = layer
        self.inputs, self.output, self.softmax, self.scores = inputs, output, softmax, scores
        self.before = layer.__dict__.get("call")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.inputs is not None:
            args, kwargs = cast_floats(args, self.inputs), cast_floats(kwargs, self.inputs)
        call = self.before or type(self.layer).call.__get__(self.layer)
        if self.softmax is not None:
            result = self._with_wide_softmax(call, args, kwargs)
        elif self.scores is not None:
            result = self._with_wide_scores(call, args, kwargs)
        else:
            result = call(*args, **kwargs)
        return result if self.output is None else cast_floats(result, self.output)

    def _with_wide_softmax(self, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        activation = self.layer.__dict__["activation"]
        self.layer.__dict__["activation"] = None
        try:
            logits = call(*args, **kwargs)
        finally:
            self.layer.__dict__["activation"] = activation
        return activation(cast_floats(logits, str(self.softmax)))

    def _with_wide_scores(self, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        calculate = type(self.layer)._calculate_scores.__get__(self.layer)
        self.layer.__dict__["_calculate_scores"] = lambda *a, **k: cast_floats(
            calculate(*a, **k), str(self.scores)
        )
        try:
            return call(*args, **kwargs)
        finally:
            del self.layer.__dict__["_calculate_scores"]


def add(model: Any, plan: Plan) -> int:
    """Put on each layer what its row needs; how many layers got something."""
    rows = {row.path: row for row in plan.rows}
    done: set[int] = set()
    for path, layer in walk(model):
        if id(layer) in done:
            continue
        done.add(id(layer))
        boundary = _needed(layer, path, rows, plan)
        if boundary is not None:
            layer.__dict__["call"] = boundary
        inner = getattr(layer, "_softmax", None)
        if family(layer) == "attention" and isinstance(inner, keras.layers.Softmax):
            # The softmax inside attention is wide, and what it weights with is not.
            output = tensorflow_name(rows[path].compute)
            inner.__dict__["call"] = Boundary(inner, inputs=_softmax_format(plan, rows[path]), output=output)
    return sum(isinstance(layer.__dict__.get("call"), Boundary) for _, layer in walk(model))


def remove(model: Any) -> None:
    """Take off everything that `add` put on."""
    for layer in model._flatten_layers():
        boundary = layer.__dict__.get("call")
        if isinstance(boundary, Boundary):
            if boundary.before is None:
                del layer.__dict__["call"]
            else:
                layer.__dict__["call"] = boundary.before


def cast_floats(tree: Any, dtype: str) -> Any:
    """Every floating-point tensor of a tree in this format, with the mask that Keras keeps on it."""

    def change(leaf: Any) -> Any:
        if not tf.is_tensor(leaf) or not is_float(leaf.dtype) or leaf.dtype == tf.as_dtype(dtype):
            return leaf
        new = tf.cast(leaf, dtype)
        mask = getattr(leaf, "_keras_mask", None)
        if mask is not None:
            new._keras_mask = mask
        return new

    return keras.tree.map_structure(change, tree)


def _needed(layer: Any, path: str, rows: dict[str, PlanRow], plan: Plan) -> Boundary | None:
    row = rows[path]
    if row.family is None and not row.ruled and not row.parameters:
        return None
    compute, output = tensorflow_name(row.compute), tensorflow_name(row.output)
    activation = rows.get(f"{path}.{ACTIVATION}" if path else ACTIVATION)
    if activation is not None and softmax_inside(layer) is not None:
        wide = tensorflow_name(activation.compute)
        output = tensorflow_name(activation.output)
        return Boundary(layer, output=output, softmax=wide) if wide != compute or output != wide else None
    if _is_cell(layer):
        # Its state goes round in a loop, whose formats must not change; the layer around it casts.
        return None
    inputs = compute if row.family == "normalization" and not layer.autocast else None
    scores = None
    if row.family == "attention" and hasattr(type(layer), "_calculate_scores"):
        wide = _softmax_format(plan, row)
        scores = wide if wide != compute else None
    if output == compute and inputs is None and scores is None:
        return None
    return Boundary(layer, inputs=inputs, output=output, scores=scores)


def _softmax_format(plan: Plan, row: PlanRow) -> str:
    """What the softmax inside an attention layer computes in: the island, unless the layer is wider."""
    wide = plan.policy.islands.softmax
    compute = tensorflow_name(row.compute)
    return wide if wide is not None and compute not in ("float32", "float64") else compute


def _is_cell(layer: Any) -> bool:
    return hasattr(layer, "state_size") and not isinstance(layer, keras.layers.RNN)
